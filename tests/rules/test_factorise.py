"""The maths of the rewrite, in double precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dsconvert.model.upsampling import upsampled
from dsconvert.rules import factorise


@pytest.fixture
def kernel() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(7, 5, 3, 3, dtype=torch.float64)


@pytest.mark.parametrize("rank", range(1, 10))
def test_dw_pw_loses_what_the_svd_says(kernel, rank):
    factors = factorise.depthwise_pointwise(kernel, rank)
    back = factorise.compose_depthwise_pointwise(factors.depthwise, factors.pointwise)
    # Independent of the code: singular values of each input channel's O x k^2 matrix.
    values = torch.linalg.svdvals(kernel.permute(1, 0, 2, 3).flatten(2))
    promised = float(values[:, rank:].square().sum() / kernel.square().sum())
    lost = float((kernel - back).square().sum() / kernel.square().sum())
    assert lost == pytest.approx(promised, abs=1e-12)
    assert factors.residual == pytest.approx(promised, abs=1e-12)


@pytest.mark.parametrize("rank", range(1, 6))
def test_pw_dw_loses_what_the_svd_says(kernel, rank):
    factors = factorise.pointwise_depthwise(kernel, rank)
    back = factorise.compose_pointwise_depthwise(factors.pointwise, factors.depthwise)
    values = torch.linalg.svdvals(kernel.flatten(2))
    promised = float(values[:, rank:].square().sum() / kernel.square().sum())
    lost = float((kernel - back).square().sum() / kernel.square().sum())
    assert lost == pytest.approx(promised, abs=1e-12)
    assert factors.residual == pytest.approx(promised, abs=1e-12)


def test_upsample_then_convolution_is_one_transposed_convolution(kernel):
    x = torch.randn(2, 5, 6, 9, dtype=torch.float64)
    wanted = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), kernel, padding=1)
    weight = upsampled(kernel).transpose(0, 1)
    got = F.conv_transpose2d(x, weight, stride=2, padding=1)
    assert (got - wanted).abs().max() < 1e-12


def test_a_zero_kernel_has_nothing_to_lose():
    factors = factorise.depthwise_pointwise(torch.zeros(4, 3, 3, 3), 1)
    assert factors.residual == 0.0
    assert torch.isfinite(factors.pointwise).all()
