"""Recognise the rules by which a model was converted, from its modules alone.

A converted model holds plain ``torch.nn`` modules and no rule names. Each rule recognises the
layout that it builds (:meth:`dsconvert.rules.Rule.rank_of`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from torch import nn

from dsconvert.model.one_dimensional import ConvTypes, as_2d
from dsconvert.rules.registry import rules


@dataclass(frozen=True, kw_only=True)
class Structure:
    """The convolutions of a model, and the number of rewritten ones by rule."""

    parameters: int
    convolutions: int
    """Those of the original: a rewritten one counts once."""
    rewritten: dict[str, int] = field(default_factory=dict)
    """``{"dw-pw rank 1": 4}``."""

    @property
    def converted(self) -> bool:
        """Whether at least one was rewritten."""
        return bool(self.rewritten)


def structure_of(model: nn.Module) -> Structure:
    """Return the structure of ``model``, whose tensors may be on the meta device."""
    found: Counter[str] = Counter()
    covered: set[nn.Module] = set()
    count = 0
    for parent in model.modules():
        before: nn.Module | None = None
        for child in parent.children():
            # An absorbed upsample leaves an identity in its place.
            label = _label(child, behind_identity=type(before) is nn.Identity)
            if label is not None and child not in covered:
                found[label] += 1
                count += 1
                covered.update(child.modules())
            before = child
    count += sum(isinstance(m, ConvTypes) and m not in covered for m in model.modules())
    return Structure(
        parameters=sum(p.numel() for p in model.parameters()),
        convolutions=count,
        rewritten=dict(sorted(found.items())),
    )


def _label(module: nn.Module, *, behind_identity: bool) -> str | None:
    """Return the rule and the rank that ``module`` was built by, or None."""
    module = as_2d(module)
    # Behind an identity, the rules that absorb an upsample are asked first.
    asked = sorted(rules(), key=lambda rule: not rule.absorbs_upsample)
    for rule in asked if behind_identity else (r for r in asked if not r.absorbs_upsample):
        if (rank := rule.rank_of(module)) is not None:
            return rule.name if rule.exact else f"{rule.name} rank {rank}"
    return None
