"""Results as plain dictionaries for ``--json``, which hold valid JSON.

Numbers are exact (no rounding); unknown numbers and those that are not finite are null.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from math import isfinite
from typing import Any

from dsconvert.records import Conversion, Cost, Plan


def plan_dict(plan: Plan) -> dict[str, Any]:
    """Return a plan as :meth:`Plan.to_json` writes it."""
    result: dict[str, Any] = json.loads(plan.to_json())
    return result


def cost_dict(cost: Cost) -> dict[str, Any]:
    """Return a cost with its layers, uncounted operators and modules that never ran."""
    result: dict[str, Any] = finite(asdict(cost))
    return result


def layer_rows(before: Cost, after: Cost) -> list[dict[str, Any]]:
    """Return the original's layers with parameters, before and after; the last row is the sum.

    Keys: ``name``, ``params_before``, ``params_after``, ``macs_before``, ``macs_after``, and
    ``total`` in the last row. A layer that is gone has 0 after.
    """
    other = {layer.name: layer for layer in after.layers}
    parents = {layer.name.rpartition(".")[0] for layer in before.layers}
    rows: list[dict[str, Any]] = []
    for layer in before.layers:
        if layer.name in parents or not layer.params:
            continue
        new = other.get(layer.name)
        rows.append(
            {
                "name": layer.name,
                "params_before": layer.params,
                "params_after": new.params if new else 0,
                "macs_before": layer.macs,
                "macs_after": new.macs if new else 0,
            }
        )
    rows.append(
        {
            "name": "whole model",
            "params_before": before.params,
            "params_after": after.params,
            "macs_before": before.macs,
            "macs_after": after.macs,
            "total": True,
        }
    )
    return rows


def _total(cost: Cost) -> dict[str, Any]:
    return {k: v for k, v in cost_dict(cost).items() if k != "layers"}


def conversion_dict(conversion: Conversion) -> dict[str, Any]:
    """Return a conversion without its model and without the layers of its costs."""
    result: dict[str, Any] = finite(
        {
            "plan": plan_dict(conversion.plan),
            "fits": [asdict(f) for f in conversion.fits],
            "before": _total(conversion.before),
            "after": _total(conversion.after),
            "notes": [*conversion.undone, *conversion.notes],
            **({"warnings": list(conversion.warnings)} if conversion.warnings else {}),
            "seconds": conversion.seconds,
            "psnr_db": conversion.psnr,
            **({} if conversion.stft is None else {"stft_distance": conversion.stft}),
            "output_error": conversion.output_error,
            "polish": None if conversion.polish is None else asdict(conversion.polish),
            "quality": None if conversion.quality is None else asdict(conversion.quality),
        }
    )
    return result


def finite(value: Any) -> Any:
    """Return ``value`` with None for NaN and infinity, which JSON lacks, and tuples as lists."""
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value
