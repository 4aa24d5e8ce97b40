"""The module classes that an adapter names, together with the original code's of the same names.

An adapter knows its own classes. A live model of the original code has other classes of the same
names and meanings; so every stage asks here and not the adapter itself. Single modules that must
not be traced into are named by the user.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn
from torch.nn.utils import parametrize

from dsconvert.errors import TraceError

if TYPE_CHECKING:
    from dsconvert.adapter import Adapter

Types = tuple[type[nn.Module], ...]


@dataclass(frozen=True, kw_only=True)
class ModelTypes:
    """Classes with a meaning in one model.

    Attributes:
        leaves: torch.fx must not trace into these.
        noises: they add freshly drawn noise.
        norms: batch normalisations of the codebase's own.
    """

    leaves: Types = ()
    noises: Types = ()
    norms: Types = ()


def types_of(model: nn.Module, adapter: Adapter | None, *, noises: Types = ()) -> ModelTypes:
    """Return the classes that ``adapter`` names, and those of the same names in ``model``.

    Args:
        model: does not change.
        adapter: the model's adapter; without one no class is known.
        noises: noise injections that the caller knows of, besides the adapter's.
    """
    if adapter is None:
        return ModelTypes(noises=noises)
    return ModelTypes(
        leaves=_also_theirs(model, adapter.leaves()),
        noises=(*noises, *_also_theirs(model, adapter.noise_types())),
        norms=_also_theirs(model, adapter.norm_types()),
    )


def _also_theirs(model: nn.Module, types: Types) -> Types:
    names = {kind.__name__ for kind in types}
    found = (parametrize.type_before_parametrizations(m) for m in model.modules())
    theirs = dict.fromkeys(kind for kind in found if kind.__name__ in names)
    return (*types, *(kind for kind in theirs if kind not in types))


def check_leaves(model: nn.Module, leaves: Sequence[str]) -> None:
    """Check that ``leaves`` are names of modules.

    Raises:
        TraceError: at least one is not.
    """
    names = {n for n, _ in model.named_modules(remove_duplicate=False)}
    if unknown := sorted(set(leaves) - names):
        raise TraceError(f"no such module to keep as a leaf: {', '.join(unknown)}.")
