"""A plan: the decision for each convolution, as JSON that a person can edit."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from dsconvert.errors import PlanError

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

    def to_json(self) -> str:
        """Return the plan as JSON, for a person to edit; :meth:`from_json` reads it."""
        return json.dumps({"dsconvert_plan": 1, **asdict(self)}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan that :meth:`to_json` wrote and a person may have edited.

        Raises:
            PlanError: not JSON, not a plan, or a field is missing, unknown or of the wrong type.
        """
        try:
            data: Any = json.loads(text)
        except ValueError as error:
            raise PlanError(
                f"the plan is not JSON ({error}); write one with --plan-only."
            ) from None
        if not isinstance(data, dict) or data.pop("dsconvert_plan", None) != 1:
            raise PlanError("this JSON is not a dsconvert plan (version 1); see --plan-only.")
        try:
            rows = data.pop("decisions")
            decisions = tuple(_decision(row) for row in rows)
            lists = {name: data.pop(name, []) for name in ("remove", "keep")}
            for name, value in lists.items():
                if type(value) is not list:
                    raise PlanError(f"the plan's {name} is {value!r}, not a list of names.")
            names = {name: tuple(value) for name, value in lists.items()}
            plan = cls(decisions=decisions, **names, **data)
        except (TypeError, KeyError, AttributeError) as error:
            raise PlanError(f"the plan has a missing or unknown field: {error}.") from None
        for what in (plan.model, plan.preset, plan.note or "", *plan.remove, *plan.keep):
            if type(what) is not str:
                raise PlanError(f"the plan has {what!r} where a text belongs; quote it.")
        return plan

    def __str__(self) -> str:
        width = max((len(d.site) for d in self.decisions), default=4)
        lines = [f"plan {self.preset!r} for {self.model}"]
        for d in self.decisions:
            what = f"{d.rule} rank {d.rank}" if d.action == "rewrite" else d.action
            lines.append(f"  {d.site:<{width}}  {what:<18} {d.reason}")
        return "\n".join(lines)


def _decision(row: Any) -> Decision:
    """One decision from JSON, with its types checked (a person edits these)."""
    decision = Decision(**row)
    bad: list[str] = []
    if decision.action not in ("keep", "rewrite", "remove"):
        bad.append(f"action {decision.action!r} is not keep, rewrite or remove")
    if decision.norm not in ("keep", "fold"):
        bad.append(f"norm {decision.norm!r} is not keep or fold")
    for name, value in asdict(decision).items():
        if value is None and name in ("rule", "rank", "macs_before", "macs_after"):
            continue
        if name == "requested":
            if type(value) is not bool:
                bad.append(f"requested {value!r} is not true or false")
        elif name == "rank" or name.startswith(("params", "macs")):
            if type(value) is not int:
                bad.append(f"{name} {value!r} is not a whole number")
        elif type(value) is not str:
            bad.append(f"{name} {value!r} is not a {'name' if name != 'reason' else 'text'}")
    if bad:
        raise PlanError(f"the plan's line for {decision.site}: {'; '.join(bad)}.")
    return decision
