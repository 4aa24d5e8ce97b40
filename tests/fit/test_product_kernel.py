"""The descent on products of two factors: its error is that of the data, and it falls."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from dsconvert.fit.moments import Moments, moments
from dsconvert.fit.product_kernel import ProductError, minimise

Conv = nn.Conv2d | nn.ConvTranspose2d


def problem(conv: Conv, *, rank: int = 2) -> tuple[tuple[Moments, ...], Tensor, Tensor]:
    """Return moments of ``conv`` with disturbed outputs, and a start of mix and filters."""
    torch.manual_seed(0)
    x = torch.randn(40, 5, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        y = conv(x) + 0.3 + 0.1 * torch.randn_like(conv(x))
    stats = moments(conv, [x], [y], samples=1 << 30)
    mix = torch.randn(8, rank, 5, dtype=torch.float64) * 0.3
    filters = torch.randn(8, rank, conv.kernel_size[0] ** 2, dtype=torch.float64) * 0.3
    return stats, mix, filters


CONVS = {
    "plain": lambda: nn.Conv2d(5, 8, 3, padding=1, bias=False).double(),
    "transposed": lambda: nn.ConvTranspose2d(5, 8, 4, 2, 1, bias=False).double(),
}


def by_autograd(
    mix: Tensor, filters: Tensor, stats: tuple[Moments, ...], *, centred: bool
) -> Tensor:
    """Return the error of each output, by the definition."""
    total, free = mix.new_zeros(len(mix)), mix.new_zeros(len(mix))
    for m in stats:
        kernel = torch.einsum("orp,ort->otp", mix, filters[:, :, list(m.taps)]).flatten(1)
        total = total + ((kernel @ m.xx) * kernel).sum(1) - 2 * (kernel * m.xy.t()).sum(1) + m.yy
        free = free + (m.y - kernel @ m.x) / len(stats)
    return total - len(stats) * free.square() if centred else total


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("kind", CONVS)
def test_the_error_is_that_of_the_moments(kind: str, centred: bool) -> None:
    stats, mix, filters = problem(CONVS[kind]())
    error = ProductError.of(stats, centred=centred)
    wanted = by_autograd(mix, filters, stats, centred=centred)
    assert error.of_factors(mix, filters) == pytest.approx(float(wanted.sum()), rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("kind", CONVS)
def test_the_descent_ends_where_the_gradient_is_zero(kind: str, centred: bool) -> None:
    stats, mix, filters = problem(CONVS[kind]())
    error = ProductError.of(stats, centred=centred)
    start = by_autograd(mix, filters, stats, centred=centred)
    mix, filters = minimise(mix, filters, error, steps=300)
    mix.requires_grad_()
    filters.requires_grad_()
    end = by_autograd(mix, filters, stats, centred=centred)
    assert bool((end <= start).all())
    end.sum().backward()
    assert mix.grad is not None
    assert filters.grad is not None
    assert float(mix.grad.abs().max()) < 1e-3 * float(start.max())
    assert float(filters.grad.abs().max()) < 1e-3 * float(start.max())


@pytest.mark.slow
def test_a_product_is_found_exactly() -> None:
    """Outputs of a kernel of rank 2 are reproduced by factors of rank 2."""
    torch.manual_seed(1)
    conv = nn.Conv2d(5, 8, 3, padding=1, bias=False).double()
    mix, filters = (torch.randn(8, 2, n, dtype=torch.float64) for n in (5, 9))
    with torch.no_grad():
        conv.weight.copy_(torch.einsum("orp,ort->opt", mix, filters).reshape(8, 5, 3, 3))
        x = torch.randn(50, 5, 6, 6, dtype=torch.float64)
        stats = moments(conv, [x], [conv(x)], samples=1 << 30)
    error = ProductError.of(stats, centred=False)
    start = (mix + 0.3 * torch.randn_like(mix), filters + 0.3 * torch.randn_like(filters))
    found = minimise(*start, error, steps=200)
    total = float(sum(m.yy.sum() for m in stats))
    assert error.of_factors(*found) < 1e-6 * total < 1e-2 * error.of_factors(*start)


def test_no_output_comes_out_worse_and_a_solution_stays() -> None:
    stats, mix, filters = problem(CONVS["plain"]())
    error = ProductError.of(stats, centred=False)
    zero = torch.zeros_like(mix), torch.zeros_like(filters)
    kept = minimise(*zero, error, steps=5)  # no direction leads away from there
    assert all(torch.equal(a, b) for a, b in zip(kept, zero, strict=True))
    once = minimise(mix, filters, error, steps=3)
    assert error.of_factors(*once) < error.of_factors(mix, filters)


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_the_size_of_the_outputs_plays_no_part(scale: float) -> None:
    """In float32, squares of squares of such values are out of range."""
    stats, mix, filters = problem(CONVS["plain"]())
    made: list[float] = []
    for size in (1.0, scale):
        scaled = tuple(
            replace(
                m, xx=m.xx.float(), x=m.x.float(), xy=(m.xy * size).float(),
                yy=(m.yy * size**2).float(), y=(m.y * size).float(),
            )
            for m in stats
        )  # fmt: skip
        error = ProductError.of(scaled, centred=True)
        start = (mix * size**0.5).float(), (filters * size**0.5).float()
        found = minimise(*start, error, steps=20)
        made.append(error.of_factors(*found) / error.of_factors(*start))
    assert made[0] < 0.5
    assert made[1] == pytest.approx(made[0], rel=1e-2)
