"""The greedy choice of channels, its losses, and the sensitivities behind them."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dsconvert.errors import NoGradientsError
from dsconvert.width.absorb import SAMPLES, predict, second_moments
from dsconvert.width.choose import Reading, choose
from dsconvert.width.sensitivity import sensitivities


def reading(x: Tensor, weight: Tensor) -> Reading:
    return Reading(x.t() @ x / len(x), weight.t() @ weight)


def least_squares_loss(x: Tensor, weight: Tensor, kept: tuple[int, ...]) -> float:
    """The error of what the weights make of all channels, predicted from those kept."""
    matrix = torch.linalg.lstsq(x[:, list(kept)], x @ weight.t()).solution
    return float((x[:, list(kept)] @ matrix - x @ weight.t()).square().sum() / len(x))


@pytest.mark.parametrize("seed", range(3))
def test_losses_are_those_of_least_squares(seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(400, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)
    weight = torch.randn(4, 6, dtype=torch.float64)
    curve = choose([reading(x, weight)], 1.0)
    for k in range(1, 6):
        wanted = least_squares_loss(x, weight, curve.order[:k])
        assert curve.loss[k] == pytest.approx(wanted, rel=1e-6)
    assert list(curve.loss) == sorted(curve.loss, reverse=True)
    assert curve.loss[-1] == 0.0
    # The first choice is the best of all.
    best = min(least_squares_loss(x, weight, (i,)) for i in range(6))
    assert curve.loss[1] == pytest.approx(best, rel=1e-6)


def test_greedy_is_near_the_best_subset() -> None:
    torch.manual_seed(1)
    x = torch.randn(300, 7, dtype=torch.float64) @ torch.randn(7, 7, dtype=torch.float64)
    weight = torch.randn(5, 7, dtype=torch.float64)
    curve = choose([reading(x, weight)], 1.0)
    best = min(least_squares_loss(x, weight, s) for s in itertools.combinations(range(7), 3))
    assert curve.loss[3] <= 1.5 * best


def test_copies_cost_nothing() -> None:
    torch.manual_seed(0)
    half = torch.randn(200, 5, dtype=torch.float64)
    x = torch.cat([half, half * 2], 1)
    curve = choose([reading(x, torch.eye(10, dtype=torch.float64))], 1.0)
    assert curve.loss[5] == pytest.approx(0, abs=1e-9)
    assert sorted(i % 5 for i in curve.order[:5]) == [0, 1, 2, 3, 4]


def test_a_channel_counts_by_its_use() -> None:
    torch.manual_seed(0)
    x = torch.randn(500, 4, dtype=torch.float64) * torch.tensor([10.0, 1.0, 1.0, 1.0])
    weight = torch.diag(torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64))
    # The loudest channel is not read at all.
    assert choose([reading(x, weight)], 1.0).order == (3, 2, 1, 0)


def test_two_consumers_are_both_served() -> None:
    torch.manual_seed(0)
    x = torch.randn(500, 3, dtype=torch.float64)
    one = torch.diag(torch.tensor([1.0, 0.0, 0.1], dtype=torch.float64))
    other = torch.diag(torch.tensor([0.0, 5.0, 0.1], dtype=torch.float64))
    assert choose([reading(x, one), reading(x, other)], 1.0).order == (1, 0, 2)


def test_predictions_are_least_squares() -> None:
    torch.manual_seed(0)
    whole = [torch.randn(2, 6, 5, 5) for _ in range(3)]
    whole = [torch.cat([w, w[:, :2] + w[:, 2:4]], 1) for w in whole]
    matrix = predict([w[:, :6] for w in whole], whole, linear=False)
    for w in whole:
        made = torch.einsum("kc,nkhw->nchw", matrix.float(), w[:, :6])
        torch.testing.assert_close(made, w, atol=1e-4, rtol=1e-4)


def test_every_column_of_a_large_map_counts() -> None:
    # Behind a transposed convolution, even and odd columns have statistics of their own.
    even = (torch.arange(64) % 2 == 0).float().expand(10, 1, 128, 64)
    assert even.numel() >= 2 * SAMPLES
    maps = [torch.cat([even, 1 - even], 1)]
    torch.testing.assert_close(
        second_moments(maps, linear=False), 0.5 * torch.eye(2).double(), atol=0.01, rtol=0
    )
    sign = 2 * even - 1
    assert predict([torch.ones_like(sign)], [sign], linear=False).abs().max() < 0.01


def test_sensitivities_are_the_squared_jacobian() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Conv2d(3, 2, 3, padding=1, bias=False))
    model.requires_grad_(False)
    batches = [(torch.randn(4, 2, 6, 6),) for _ in range(60)]
    weights, spread = sensitivities(model, ["0"], batches)
    last = model[1]
    assert isinstance(last, nn.Conv2d)
    jacobian = torch.autograd.functional.jacobian(last, torch.zeros(1, 3, 6, 6))
    wanted = jacobian.square().sum((0, 1, 2, 3, 4, 6, 7))
    np.testing.assert_allclose(weights["0"].numpy(), wanted.numpy(), rtol=0.1)
    with torch.no_grad():
        outputs = torch.cat([model(b[0]) for b in batches])
    assert spread == pytest.approx(float(outputs.var(0).sum()), rel=1e-4)


class Returns(nn.Module):
    """A convolution; ``made`` says which values of its map the model returns."""

    def __init__(self, made: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1)
        self.made = made

    def forward(self, x: Tensor) -> object:
        return self.made(self.conv(x))


def test_only_outputs_of_each_sample_count() -> None:
    torch.manual_seed(0)
    batches = [(torch.randn(2, 2, 4, 4),) for _ in range(2)]
    alone = Returns(lambda y: y)
    weights, spread = sensitivities(alone, ["conv"], batches)
    others: tuple[Callable[[Tensor], object], ...] = (
        lambda y: (y.square().mean(), y),  # a loss
        lambda y: {"image": y, "codes": y.argmax(1), "table": torch.ones(3, 2)},
        lambda y: y.flatten(0, 1),  # several rows a sample
    )
    for made in others:
        model = Returns(made)
        model.load_state_dict(alone.state_dict())
        again, same = sensitivities(model, ["conv"], batches)
        assert same == pytest.approx(spread)
        torch.testing.assert_close(again, weights)


def test_without_an_output_of_each_sample_nothing_is_measured() -> None:
    model = Returns(lambda y: (y.mean(), y.argmax(1)))
    with pytest.raises(NoGradientsError, match=r"returns float32 \(\), int64 \(2, 4, 4\).*width=1"):
        sensitivities(model, ["conv"], [(torch.randn(2, 2, 4, 4),)])
