"""Tell layers that compute as torch's own classes from those with code of their own."""

from __future__ import annotations

from torch import nn

_COMPUTING = ("forward", "_conv_forward", "__call__")


def computes_as(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Return whether ``module`` is of one of ``kinds`` and computes as that class does.

    A subclass may compute otherwise (same-padding, scaled or standardised weights), and so may a
    single instance (accelerate replaces its ``forward``). Their parameters alone do not say what
    they do. A parametrisation makes a subclass, too, but leaves the computation as it is.
    """
    own = type(module)
    return "forward" not in vars(module) and any(
        all(getattr(own, n, None) is getattr(kind, n, None) for n in _COMPUTING)
        for kind in kinds
        if issubclass(own, kind)
    )
