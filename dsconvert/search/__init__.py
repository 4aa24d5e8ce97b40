"""Plan by measured time: find the least loss that meets a target on this device."""

from __future__ import annotations

from dsconvert.search.clock import Clock, MachineClock
from dsconvert.search.measured_plan import MeasuredPlan
from dsconvert.search.plan import plan_measured
from dsconvert.search.records import Promise, Target
from dsconvert.search.targets import parse_target
from dsconvert.search.verify import missed, verify

__all__ = [
    "Clock",
    "MachineClock",
    "MeasuredPlan",
    "Promise",
    "Target",
    "missed",
    "parse_target",
    "plan_measured",
    "verify",
]
