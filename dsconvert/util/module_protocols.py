"""Methods by which a module of a codebase's own takes part in a conversion.

:mod:`dsconvert.adapter` makes these names public.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeGuard, runtime_checkable

if TYPE_CHECKING:
    import torch


@runtime_checkable
class Follows(Protocol):
    """A module that adapts itself to a changed input when a model is fitted."""

    def follow(self, student: Any, teacher: Any, wanted: Any) -> None:
        """Adapt, in place.

        Args:
            student: per batch, the arguments of this module's call.
            teacher: per batch, the arguments of the same call in the original model.
            wanted: per batch, the output of the original.
        """
        ...


@runtime_checkable
class Narrows(Protocol):
    """A module without a traced inside that stays right when maps that it reads lose channels.

    Its result has the channels of one of its arguments, in the same dimension. Its children that
    are called elsewhere, too, lose channels as these calls do; nothing else in it depends on the
    number of channels.

    Attributes:
        channels_of: position of that argument in a call.
    """

    channels_of: int

    def narrow(self, kept: torch.Tensor) -> None:
        """Keep the channels ``kept`` of that argument in the tensors of the module itself."""
        ...


class NormalisesWeight(Protocol):
    """A convolution or linear layer that normalises its own kernel before it applies it.

    Apart from that it computes as the ``torch.nn`` layer does that it is a subclass of.
    """

    def applied_weight(self) -> torch.Tensor:
        """Return the kernel as applied in eval mode; nothing in the module changes."""
        ...

    def fold(self) -> None:
        """Become the plain ``torch.nn`` layer, in place, with the applied kernel as ``weight``."""
        ...


def normalises_weight(module: object) -> TypeGuard[NormalisesWeight]:
    """Return whether ``module`` has the methods of :class:`NormalisesWeight`.

    By attributes: ``isinstance`` with a protocol adds annotations to the class of ``module``.
    """
    return all(callable(getattr(module, name, None)) for name in ("applied_weight", "fold"))
