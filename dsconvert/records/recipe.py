"""What the training of a codebase's generators has of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The official training of a codebase's generators, where it differs from another's.

    Attributes:
        z_dim: the size of a new generator's latents.
        learning_rate: of both networks, where a training names none.
        separable_heads: whether Projected GAN's discriminator has separable convolutions.
        move_means: ``move_means(generator, args)`` moves the running means that truncation pulls
            towards, in place, by the arguments of one call, and returns them; None: there are none.
    """

    z_dim: int = 256
    learning_rate: float = 2e-4
    separable_heads: bool = False
    move_means: Callable[[nn.Module, Sequence[Any]], Sequence[Tensor]] | None = None
