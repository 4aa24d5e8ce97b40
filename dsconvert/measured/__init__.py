"""Plans from measured time: the least loss that meets a target on the device at hand."""

from __future__ import annotations

from dsconvert.measured.clock import Clock, MachineClock
from dsconvert.measured.plan import MeasuredPlan, plan_measured
from dsconvert.measured.records import Promise, Target
from dsconvert.measured.targets import parse_target
from dsconvert.measured.verify import missed, verify

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
