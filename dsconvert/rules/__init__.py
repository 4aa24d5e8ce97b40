"""Rewrite rules, one file a rewrite, and the registry that plans look them up in."""

from __future__ import annotations

from dsconvert.errors import PlanError
from dsconvert.rules.base import Built, Order, Rule
from dsconvert.rules.separable import DepthwisePointwise, PointwiseDepthwise
from dsconvert.rules.upsample import UpsampleMerge, UpsamplePointwiseDepthwise

_REGISTRY: dict[str, Rule] = {}


def register(rule: Rule) -> None:
    """Make ``rule`` known to plans.

    Raises:
        PlanError: a rule of that name exists; the registry is left as it was.
    """
    if rule.name in _REGISTRY:
        raise PlanError(
            f"a rule called {rule.name!r} is registered already "
            f"({type(_REGISTRY[rule.name]).__name__}); give yours another name."
        )
    _REGISTRY[rule.name] = rule


def rule_named(name: str) -> Rule:
    """The registered rule of that name.

    Raises:
        PlanError: there is none.
    """
    if name not in _REGISTRY:
        raise PlanError(f"no rule is called {name!r}; known: {', '.join(sorted(_REGISTRY))}.")
    return _REGISTRY[name]


def rules() -> tuple[Rule, ...]:
    """All registered rules, in order of registration."""
    return tuple(_REGISTRY.values())


for _rule in (
    DepthwisePointwise(),
    PointwiseDepthwise(),
    UpsamplePointwiseDepthwise(),
    UpsampleMerge(),
):
    register(_rule)

__all__ = ["Built", "Order", "Rule", "register", "rule_named", "rules"]
