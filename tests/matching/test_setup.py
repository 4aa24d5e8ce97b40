"""The form that a trained student gets back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dsconvert.matching.setup import as_given, working_copy


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kept, self.conv = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 3, 3)
        self.norm = nn.BatchNorm2d(8)
        self.register_buffer("frequencies", torch.linspace(0, 1, 8, dtype=torch.float64) / 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(self.kept(x)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_no_training_moved_keeps_its_digits(dtype: torch.dtype) -> None:
    model = _Net().to(dtype)
    model.frequencies = torch.linspace(0, 1, 8, dtype=torch.float64) / 3
    working = working_copy(model, frozen=["kept"])
    working.train()
    working(torch.randn(2, 3, 8, 8)).square().mean().backward()
    with torch.no_grad():
        for parameter in working.parameters():
            if parameter.grad is not None:
                parameter -= 0.5 * parameter.grad
    made, given = as_given(working, model).state_dict(), model.state_dict()
    moved = {n for n, t in given.items() if not torch.equal(t, made[n])}
    trained = {"conv.weight", "conv.bias", "norm.weight", "norm.bias"}
    statistics = {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert moved <= trained | statistics
    assert {"conv.weight", "norm.running_mean", "norm.num_batches_tracked"} <= moved
    assert {n: t.dtype for n, t in made.items()} == {n: t.dtype for n, t in given.items()}
    assert all(made[n].data_ptr() != t.data_ptr() for n, t in given.items())
