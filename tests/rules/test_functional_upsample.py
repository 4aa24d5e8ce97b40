"""A functional upsample in front of a convolution: the pointwise runs at the low resolution."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsconvert import analyse, apply, convert, plan
from dsconvert.core.cost import count
from dsconvert.formats.restructure import describe_changes, restructure
from dsconvert.rules import rule_named
from dsconvert.testing import check_rule
from tests.upscalers import Upscaler, upscaler

X = torch.rand(2, 3, 9, 10, generator=torch.Generator().manual_seed(0))


def inputs(n: int, generator: torch.Generator) -> tuple[Tensor]:
    coarse = torch.rand(n, 3, 4, 4, generator=generator)
    return (F.interpolate(coarse, (16, 16), mode="bicubic"),)


class Enlarging(nn.Module):
    """One convolution behind a call of ``F.interpolate``."""

    def __init__(self, shared: bool = False, kernel: int = 3, **options: object) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, kernel, padding=kernel // 2)
        self.shared, self.options = shared, options

    def forward(self, x: Tensor) -> Tensor:
        up = F.interpolate(x, **self.options)
        y = self.conv(up)
        return y + up.mean(1, keepdim=True) if self.shared else y


@pytest.mark.slow
def test_the_contract_of_rules() -> None:
    check_rule(rule_named("low-pw-dw"))


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (Enlarging(scale_factor=2), True),
        (Enlarging(scale_factor=2.0, mode="nearest"), True),
        (Enlarging(scale_factor=(2, 2)), True),
        (Enlarging(scale_factor=2, mode="bilinear"), False),
        (Enlarging(scale_factor=3), False),
        (Enlarging(size=(18, 20)), False),
        (Enlarging(shared=True, scale_factor=2), False),
    ],
)
def test_where_it_is_found(model: nn.Module, found: bool) -> None:
    (site,) = analyse(model, example_inputs=(X,)).sites.convolutions
    assert site.doubled is found
    assert (rule_named("low-pw-dw").why_not(site) is None) is found


def test_full_rank_is_the_original() -> None:
    model = upscaler()
    others = ["first", "second", "last"]
    chosen = plan(model, preset="fast", rank=9, keep=others, example_inputs=(X,))
    (decision,) = [d for d in chosen.decisions if d.site == "up"]
    assert (decision.rule, decision.rank) == ("low-pw-dw", 9)
    made = apply(model, chosen, example_inputs=(X,), init="svd", calibrate=0).model
    with torch.no_grad():
        assert torch.allclose(made(X), model(X), atol=1e-5)
    assert type(made) is Upscaler


@pytest.mark.slow
def test_it_is_fitted_and_counted() -> None:
    model = upscaler()
    chosen = plan(model, preset="fast", rank=1, keep=["first", "second", "last"], inputs=inputs)
    made = apply(model, chosen, inputs=inputs, calibrate=32)
    (fit,) = made.fits
    assert fit.fitted < 0.5 * fit.svd
    (decision,) = [d for d in chosen.decisions if d.site == "up"]
    example = inputs(1, torch.Generator().manual_seed(0))
    saved = count(model, example).macs - count(made.model, example).macs
    assert saved == decision.macs_before - decision.macs_after
    # 16 outputs at 16 x 16 pixels: the pointwise and the 16 taps of the depthwise.
    assert decision.macs_after == 16 * (16 + 16) * 16 * 16


def test_a_recipe_holds_it() -> None:
    model = upscaler()
    made = convert(model, preset="fast", rank=1, example_inputs=(X,), init="svd", calibrate=0)
    again = restructure(upscaler(), describe_changes(model, made))
    again.load_state_dict(made.state_dict())
    with torch.no_grad():
        assert torch.equal(again(X), made(X))
    assert tuple(again.up.pointwise.stride) == (2, 2)
