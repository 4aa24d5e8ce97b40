"""The same facts as plain dictionaries, for ``--json``. What they hold is valid JSON.

Numbers are exact (no rounding); what is unknown, or not finite, is null.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from math import isfinite
from typing import Any

from dsconvert.records import Conversion, Cost, Plan


def plan_dict(plan: Plan) -> dict[str, Any]:
    """A plan, as :meth:`Plan.to_json` writes it."""
    result: dict[str, Any] = json.loads(plan.to_json())
    return result


def cost_dict(cost: Cost) -> dict[str, Any]:
    """A cost with its layers, what fvcore did not count and what never ran."""
    result: dict[str, Any] = finite(asdict(cost))
    return result


def _total(cost: Cost) -> dict[str, Any]:
    return {k: v for k, v in cost_dict(cost).items() if k != "layers"}


def conversion_dict(conversion: Conversion) -> dict[str, Any]:
    """A conversion without its model and without the layers of its costs."""
    result: dict[str, Any] = finite(
        {
            "plan": plan_dict(conversion.plan),
            "fits": [asdict(f) for f in conversion.fits],
            "before": _total(conversion.before),
            "after": _total(conversion.after),
            "notes": list(conversion.notes),
            "seconds": conversion.seconds,
        }
    )
    return result


def finite(value: Any) -> Any:
    """``value`` with NaN and infinity, which JSON does not know, as None; tuples as lists."""
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value
