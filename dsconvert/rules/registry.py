"""The registry of rewrite rules, in which plans look rules up by name."""

from __future__ import annotations

from typing import cast

from dsconvert.errors import PlanError
from dsconvert.rules.base import Rule
from dsconvert.rules.depthwise_pointwise import DepthwisePointwise
from dsconvert.rules.pointwise_depthwise import PointwiseDepthwise
from dsconvert.rules.upsample import (
    LowPointwiseDepthwise,
    UpsampleMerge,
    UpsamplePointwiseDepthwise,
)

_REGISTRY: dict[str, Rule] = {}


def register(rule: Rule) -> None:
    """Add ``rule`` to the registry of this process.

    Plans may then name it, a search for a target (:func:`dsconvert.search.plan_measured`) tries
    it, and ``inspect`` recognises its replacements by :meth:`Rule.rank_of`. Presets choose among
    the built-in rules alone. The command line knows the built-in rules alone: use a rule of your
    own from Python.

    Raises:
        PlanError: it is no :class:`Rule`, or a rule of that name exists. The registry does not
            change.
    """
    given = cast("object", rule)
    if not isinstance(given, Rule):
        raise PlanError(
            f"{type(given).__name__} does not inherit dsconvert.rules.Rule; inherit it. (A rule "
            "for an older dsconvert: rename 'refuses' to 'why_not' and drop 'order'.)"
        )
    if rule.name in _REGISTRY:
        raise PlanError(
            f"a rule called {rule.name!r} is registered already "
            f"({type(_REGISTRY[rule.name]).__name__}); give yours another name."
        )
    _REGISTRY[rule.name] = rule


def rule_named(name: str) -> Rule:
    """Return the registered rule of that name.

    Raises:
        PlanError: there is none.
    """
    if name not in _REGISTRY:
        raise PlanError(
            f"no rule is called {name!r}; known: {', '.join(sorted(_REGISTRY))}. A rule of your "
            "own is known in a process that called dsconvert.rules.register with it."
        )
    return _REGISTRY[name]


def rules() -> tuple[Rule, ...]:
    """Return all registered rules, in order of registration."""
    return tuple(_REGISTRY.values())


for _rule in (
    DepthwisePointwise(),
    PointwiseDepthwise(),
    UpsamplePointwiseDepthwise(),
    LowPointwiseDepthwise(),
    UpsampleMerge(),
):
    register(_rule)
