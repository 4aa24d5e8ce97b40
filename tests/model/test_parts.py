"""A batch in parts gives the images of the whole batch, noise included."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dsconvert.model.parts import images_in_parts

_DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "randn": lambda x: torch.randn(x.shape[0], 1, *x.shape[2:]),
    "rand": lambda x: torch.rand(x.shape),
    "randn_like": torch.randn_like,
    "in place": lambda x: torch.empty_like(x[:, :1]).normal_(0, 2),
    "one for all samples": lambda x: torch.randn(1, *x.shape[1:]),
}


class _Noisy(nn.Module):
    """Adds two draws to its input, which it writes into, and can only hold ``room`` samples."""

    def __init__(self, draw: Callable[[Tensor], Tensor], room: int) -> None:
        super().__init__()
        self.draw, self.room = draw, room
        self.sizes: list[int] = []

    def forward(self, x: Tensor, scale: float) -> Tensor:
        first = self.draw(x.mul_(scale))
        if len(x) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.sizes.append(len(x))
        return x + first + 3 * self.draw(x)


@pytest.mark.parametrize("draw", list(_DRAWS))
def test_the_images_do_not_depend_on_the_parts(draw: str) -> None:
    x = torch.randn(6, 2, 5, 5)
    torch.manual_seed(3)
    whole = images_in_parts(_Noisy(_DRAWS[draw], 6), (x, 2.0), batch=6)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    model = _Noisy(_DRAWS[draw], 2)
    parts = images_in_parts(model, (x, 2.0), batch=6)
    assert torch.equal(parts, whole)
    assert torch.equal(torch.get_rng_state(), after)
    assert model.sizes == [2, 2, 2]
