"""A plan: the decision for each convolution, as JSON that a person can edit."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from dsconvert.errors import PlanError
from dsconvert.records.widths import Width
from dsconvert.util.foreign_text import from_json

Action = Literal["keep", "rewrite", "remove"]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The decision for one convolution, and its reason. Costs are None if shapes are unknown."""

    site: str
    action: Action
    rule: str | None = None
    rank: int | None = None
    norm: Literal["keep", "fold"] = "fold"
    reason: str
    params_before: int
    params_after: int
    macs_before: int | None = None
    macs_after: int | None = None
    requested: bool = False
    """Whether it is kept on the user's request."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Decisions for every convolution of one architecture; touches no weight."""

    model: str
    preset: str
    decisions: tuple[Decision, ...]
    remove: tuple[str, ...] = ()
    """Dead modules that are removed."""
    keep: tuple[str, ...] = ()
    """Modules whose bytes stay as they are, by request: nothing in them is rewritten, refitted,
    folded or re-estimated."""
    note: str | None = None
    widths: tuple[Width, ...] = ()
    """The channel groups that get narrower; the others keep all of their channels."""
    missed: bool = False
    """Whether the plan misses the promise of its preset by far (``note`` has the figures)."""

    @property
    def changes(self) -> bool:
        """Whether a convolution is rewritten or a map gets narrower."""
        return bool(self.widths) or any(d.action == "rewrite" for d in self.decisions)

    def to_json(self) -> str:
        """Return the plan as JSON, for a person to edit; :meth:`from_json` reads it."""
        data = asdict(self)
        for name in ("widths", "missed"):
            if not data[name]:  # as in files of earlier versions
                del data[name]
        return json.dumps({"dsconvert_plan": 1, **data}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan that :meth:`to_json` wrote and a person may have edited.

        Raises:
            PlanError: not JSON, not a plan, or a field is missing, unknown or of the wrong type.
        """
        try:
            data: Any = from_json(text)
        except ValueError as error:
            raise PlanError(
                f"the plan is not JSON ({error}); write one with --plan-only."
            ) from None
        if not isinstance(data, dict) or data.pop("dsconvert_plan", None) != 1:
            raise PlanError("this JSON is not a dsconvert plan (version 1); see --plan-only.")
        try:
            rows = data.pop("decisions")
            decisions = tuple(_decision(row) for row in rows)
            widths = tuple(_width(row) for row in data.pop("widths", ()))
            lists = {name: data.pop(name, []) for name in ("remove", "keep")}
            for name, value in lists.items():
                if type(value) is not list:
                    raise PlanError(f"the plan's {name} is {value!r}, not a list of names.")
            names = {name: tuple(value) for name, value in lists.items()}
            plan = cls(decisions=decisions, widths=widths, **names, **data)
        except (TypeError, KeyError, AttributeError) as error:
            raise PlanError(f"the plan has a missing or unknown field: {error}.") from None
        for text in (plan.model, plan.preset, plan.note or "", *plan.remove, *plan.keep):
            if type(text) is not str:
                raise PlanError(f"the plan has {text!r} where a text belongs; quote it.")
        if type(plan.missed) is not bool:
            raise PlanError(f"the plan's missed is {plan.missed!r}, not true or false.")
        return plan

    def __str__(self) -> str:
        width = max((len(d.site) for d in self.decisions), default=4)
        lines = [f"plan {self.preset!r} for {self.model}"]
        for d in self.decisions:
            what = f"{d.rule} rank {d.rank}" if d.action == "rewrite" else d.action
            lines.append(f"  {d.site:<{width}}  {what:<18} {d.reason}")
        for w in self.widths:
            lines.append(
                f"  {w.group:<{width}}  {f'{w.kept} of {w.channels} channels':<18} {w.reason}"
            )
        return "\n".join(lines)


def _decision(row: Any) -> Decision:
    """Make one decision from JSON."""
    decision = Decision(**row)
    _check_types(decision, decision.site)
    return decision


def _width(row: Any) -> Width:
    width = Width(**row)
    _check_types(width, width.group)
    return width


def _check_types(row: Decision | Width, line: str) -> None:
    """Check the fields' annotations, since a person edits them.

    Raises:
        PlanError: a value has another type.
    """
    bad: list[str] = []
    for name, hint in get_type_hints(type(row)).items():
        value, kinds = getattr(row, name), get_args(hint) or (hint,)
        if get_origin(hint) is Literal:
            if value not in kinds:
                *others, last = kinds
                bad.append(f"{name} {value!r} is not {', '.join(others)} or {last}")
        # An int is expected, not a bool: a subclass is another type in JSON.
        elif type(value) not in kinds:
            expected = "a text" if name == "reason" else _EXPECTED[kinds[0]]
            bad.append(f"{name} {value!r} is not {expected}")
    if bad:
        raise PlanError(f"the plan's line for {line}: {'; '.join(bad)}.")


_EXPECTED = {str: "a name", int: "a whole number", bool: "true or false"}
