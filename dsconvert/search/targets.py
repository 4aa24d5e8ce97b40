"""Parse targets as a person types them: ``latency=0.2x``, ``params=10M``."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dsconvert.errors import TargetError
from dsconvert.search.records import METRICS, Target
from dsconvert.search.units import UNITS

_FORM = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([A-Za-z]*)")


def parse_target(text: str) -> Target:
    """Read ``metric=0.2x`` (of the original) or ``metric=150ms`` (a figure with its unit).

    Raises:
        TargetError: an unknown metric, a wrong unit, or no positive number.
    """
    name, equals, value = text.partition("=")
    name = name.strip()
    if not equals or name not in METRICS:
        raise TargetError(
            f"{text!r} is no target; write one like latency=0.2x, with one of {', '.join(METRICS)}."
        )
    units = UNITS[name]
    known = ", ".join(u for u in units if u)
    found = _FORM.fullmatch(value.strip())
    if found is None:
        raise TargetError(
            f"target {text!r}: {value!r} is no number with a unit; write {name}=0.2x (of the "
            f"original), or a figure in {known}."
        )
    number, unit = float(found[1]), found[2]
    if number <= 0:
        raise TargetError(f"target {text!r} can't be reached: give a number above 0.")
    if unit == "x":
        return Target(metric=name, ratio=number)
    if unit not in units:
        what = f"the unit {unit!r} is none of {name}'s" if unit else "the unit is missing"
        raise TargetError(
            f"target {text!r}: {what}; write {name}=0.2x (of the original), or a figure in {known}."
        )
    return Target(metric=name, absolute=number * units[unit])


def parse_targets(targets: Sequence[str | Target]) -> tuple[Target, ...]:
    """Read several targets; each metric may occur once.

    Raises:
        TargetError: none at all, a metric twice, or see :func:`parse_target`.
    """
    found = tuple(parse_target(t) if isinstance(t, str) else t for t in targets)
    names = [t.metric for t in found]
    if not found:
        raise TargetError("no target was given; write one like latency=0.2x.")
    if twice := next((n for n in names if names.count(n) > 1), None):
        raise TargetError(f"{twice} is a target twice; give each once.")
    return found
