"""The same facts as plain dictionaries, for ``--json``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from dsconvert.records import Conversion, Cost, Plan


def plan_dict(plan: Plan) -> dict[str, Any]:
    """A plan, as :meth:`Plan.to_json` writes it."""
    result: dict[str, Any] = json.loads(plan.to_json())
    return result


def cost_dict(cost: Cost) -> dict[str, Any]:
    """A cost with its layers."""
    return asdict(cost)


def conversion_dict(conversion: Conversion) -> dict[str, Any]:
    """A conversion without its model."""
    return {
        "plan": plan_dict(conversion.plan),
        "fits": [asdict(f) for f in conversion.fits],
        "before": {"params": conversion.before.params, "macs": conversion.before.macs},
        "after": {"params": conversion.after.params, "macs": conversion.after.macs},
        "notes": list(conversion.notes),
        "seconds": conversion.seconds,
    }
