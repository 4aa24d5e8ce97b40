"""By which rules a model was converted, told from its modules alone.

Converted models hold plain ``torch.nn`` modules, so a file of one says nothing by name; but what
the built-in rules make has a layout of its own.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from torch import nn

Convolution = nn.Conv2d | nn.ConvTranspose2d


@dataclass(frozen=True, kw_only=True)
class Structure:
    """The convolutions of a model, and how many of them were rewritten, by rule."""

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
    """Look through ``model``; its tensors may be on the meta device."""
    found: Counter[str] = Counter()
    covered: set[nn.Module] = set()
    count = 0
    for parent in model.modules():
        before: nn.Module | None = None
        for child in parent.children():
            # Behind the place of an upsample that the rule has taken in.
            name = _rule(child, behind=type(before) is nn.Identity)
            if name is not None and child not in covered:
                found[name] += 1
                count += 1
                covered.update(child.modules())
            before = child
    count += sum(isinstance(m, Convolution) and m not in covered for m in model.modules())
    return Structure(
        parameters=sum(p.numel() for p in model.parameters()),
        convolutions=count,
        rewritten=dict(sorted(found.items())),
    )


def _rule(module: nn.Module, *, behind: bool) -> str | None:
    if behind and isinstance(module, nn.ConvTranspose2d) and _doubles(module):
        return "up-merge" if module.groups == 1 else None
    if type(module) is not nn.Sequential:
        return None
    children = dict(module.named_children())
    spatial, point = children.get("depthwise"), children.get("pointwise")
    if len(children) != 2 or not isinstance(spatial, Convolution):
        return None
    if not isinstance(point, nn.Conv2d):
        return None
    if next(iter(children)) == "depthwise":
        return f"dw-pw rank {spatial.out_channels // max(1, spatial.groups)}"
    rank = spatial.in_channels // max(1, spatial.groups)
    merged = behind and isinstance(spatial, nn.ConvTranspose2d) and _doubles(spatial)
    return f"{'up-pw-dw' if merged else 'pw-dw'} rank {rank}"


def _doubles(conv: nn.ConvTranspose2d) -> bool:
    """Whether it is what an upsample and a 3x3 convolution become together."""
    return tuple(conv.kernel_size) == (4, 4) and tuple(conv.stride) == (2, 2)
