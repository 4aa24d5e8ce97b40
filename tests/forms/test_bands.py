"""Convolutions in bands: the same map as the modules they replace, at every rank and size."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsconvert.core.pipeline import apply, plan
from dsconvert.forms import bands, deploy, stages
from dsconvert.forms.bands import BandedConvolution, Window
from dsconvert.forms.spatial_filters import filter_of, mixed
from tests.forms.generators import image, inputs_of
from tests.made_models import moved_generator

if TYPE_CHECKING:
    from dsconvert.forms.spatial_filters import SpatialFilter

CHANNELS, OUTPUTS = 5, 6
SIZES = [(1, 1), (3, 5), (9, 4), (16, 8)]
BANDS = [1, 3000, 1 << 30]


def _of(conv: nn.Module) -> SpatialFilter:
    spatial = filter_of(conv)
    assert spatial is not None
    return spatial


def _pair(
    order: str, rank: int
) -> tuple[nn.Sequential, nn.Conv2d | None, nn.Module, nn.Conv2d | None]:
    """Return a pair as the rules make it, with its pointwise in front, spatial, and behind."""
    wide = OUTPUTS * rank
    if order == "dw-pw":
        spatial = nn.Conv2d(CHANNELS, CHANNELS * rank, 3, padding=1, groups=CHANNELS)
        back = nn.Conv2d(CHANNELS * rank, OUTPUTS, 1)
        return nn.Sequential(spatial, back), None, spatial, back
    front = nn.Conv2d(CHANNELS, wide, 1, bias=False)
    if order == "pw-dw":
        conv: nn.Module = nn.Conv2d(wide, OUTPUTS, 3, padding=1, groups=OUTPUTS)
    else:
        conv = nn.ConvTranspose2d(wide, OUTPUTS, 4, stride=2, padding=1, groups=OUTPUTS)
    return nn.Sequential(front, conv), front, conv, None


@pytest.mark.slow
@pytest.mark.parametrize("order", ["dw-pw", "pw-dw", "up-pw-dw"])
@pytest.mark.parametrize(
    "rank", [1, 3, 9, *(pytest.param(r, marks=pytest.mark.extended) for r in (2, 4))]
)
def test_a_pair_of_any_rank(order: str, rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(rank)
    pair, front, spatial, back = _pair(order, rank)
    pair.double().requires_grad_(False)
    noise = torch.randn(OUTPUTS, dtype=torch.float64)
    for size in SIZES:
        for n in (1, 3):
            x = torch.randn(n, CHANNELS, *size, dtype=torch.float64)
            want = pair(x)
            plane = torch.randn(n, 1, *want.shape[2:], dtype=torch.float64)
            for weight, gate in ((None, False), (noise, True), (noise[:1], False), (None, True)):
                expected = want if weight is None else want + weight.view(-1, 1, 1) * plane
                expected = F.glu(expected, 1) if gate else expected
                made = mixed(_of(spatial), front=front, back=back, noise=weight, gate=gate)
                for band in BANDS:
                    monkeypatch.setattr(bands, "BAND", band)
                    got = made(x, None if weight is None else plane)
                    assert torch.allclose(got, expected, rtol=1e-10, atol=1e-10), (size, n, band)
                    assert got.is_contiguous(memory_format=torch.channels_last)


def _dense() -> list[tuple[nn.Module, bool]]:
    return [
        (nn.Conv2d(CHANNELS, OUTPUTS, 3, padding=1), False),
        (nn.Conv2d(CHANNELS, OUTPUTS, (5, 3), padding=(2, 0), bias=False), False),
        (nn.Conv2d(CHANNELS, OUTPUTS, 3, padding="same"), True),
        (nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS), True),
        (nn.ConvTranspose2d(CHANNELS, OUTPUTS, 4, stride=2, padding=1), False),
        (nn.ConvTranspose2d(12, OUTPUTS, 4, stride=2, padding=1, groups=OUTPUTS), False),
    ]


@pytest.mark.parametrize("index", range(6))
def test_a_convolution_alone(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(index)
    conv, behind_upsample = _dense()[index]
    conv.double().requires_grad_(False)
    double = nn.Upsample(scale_factor=2)
    for size in ((7, 5), (16, 8)):
        for n in (1, 3):
            x = torch.randn(n, conv.in_channels, *size, dtype=torch.float64)  # type: ignore[arg-type]
            for spatial, want in [
                (_of(conv), conv(x)),
                *([(_of(conv).upsampled(), conv(double(x)))] if behind_upsample else []),
            ]:
                assert spatial is not None
                made = mixed(spatial, front=None, back=None, noise=None, gate=False)
                for band in BANDS:
                    monkeypatch.setattr(bands, "BAND", band)
                    assert torch.allclose(made(x), want, rtol=1e-10, atol=1e-10), (size, n, band)


@pytest.mark.parametrize("rank", [1, 3])
def test_a_pair_behind_an_upsample(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(rank)
    pair, _, spatial, back = _pair("dw-pw", rank)
    pair.double().requires_grad_(False)
    doubled = _of(spatial).upsampled()
    assert doubled is not None
    made = mixed(doubled, front=None, back=back, noise=None, gate=True)
    for n in (1, 3):
        x = torch.randn(n, CHANNELS, 7, 5, dtype=torch.float64)
        want = F.glu(pair(nn.Upsample(scale_factor=2)(x)), 1)
        for band in BANDS:
            monkeypatch.setattr(bands, "BAND", band)
            assert torch.allclose(made(x), want, rtol=1e-10, atol=1e-10)


def test_many_rows_and_few_rows_give_the_same_product(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, CHANNELS, 9, 7)
    for order in ("dw-pw", "up-pw-dw"):
        pair, front, spatial, back = _pair(order, 2)
        pair.requires_grad_(False)
        made = mixed(_of(spatial), front=front, back=back, noise=None, gate=False)
        for few in (0, 1 << 20):
            monkeypatch.setattr("dsconvert.forms.packed._FEW_ROWS", few)
            assert torch.allclose(made(x), pair(x), atol=1e-5)
            for again in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
                assert torch.equal(again(x), made(x))


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(6, 6, 3, stride=2, padding=1),
        nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(6, 6, 3, padding=2, dilation=2),
        nn.Conv2d(6, 6, 4, padding="same"),
        nn.Conv2d(6, 6, 3, padding=3),
        nn.Conv2d(6, 6, 3, padding=1, groups=2),
        nn.Conv2d(6, 6, 1),
        nn.ConvTranspose2d(6, 12, 4, stride=2, padding=1, groups=6),
        nn.ConvTranspose2d(6, 6, 4, stride=2, padding=0),
        nn.ConvTranspose2d(6, 6, 3, stride=2, padding=1, output_padding=1),
        nn.ReLU(),
    ],
)
def test_other_convolutions_are_left_alone(conv: nn.Module) -> None:
    assert filter_of(conv) is None


def test_rows_outside_the_map_are_padding() -> None:
    assert Window.of(-1, 5, 10) == Window(low=0, high=5, padding=1, first=0)
    assert Window.of(2, 5, 10) == Window(low=2, high=5, padding=0, first=0)
    assert Window.of(6, 11, 10) == Window(low=6, high=10, padding=1, first=1)


def _closeness(model: nn.Module, n: int) -> float:
    args = inputs_of(model, n)
    made = deploy(model)
    assert any(isinstance(m, BandedConvolution) for m in made.modules())
    want = image(model, args)
    return float((image(made, args) - want).abs().max() / want.abs().max())


@pytest.mark.slow
@pytest.mark.parametrize(
    "preset", ["exact", pytest.param("paper", marks=pytest.mark.extended), "balanced", None]
)
def test_generators_of_every_plan(plain: nn.Module, preset: str | None) -> None:
    model = plain
    if preset is not None:
        found = plan(plain, preset=preset)
        model = apply(plain, found, init="svd", calibrate=0).model.eval()
    assert _closeness(model, 1) <= 2e-5
    assert _closeness(model, 3) <= 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("rank", [2, pytest.param(9, marks=pytest.mark.extended)])
def test_a_conditional_generator_at_higher_ranks(rank: int) -> None:
    model = moved_generator(ngf=2, classes=3)
    found = plan(model, preset="balanced", rank=rank)
    model = apply(model, found, init="svd", calibrate=0).model.eval()
    assert _closeness(model, 2) <= 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("which", ["fast", "conditional"])
def test_a_batch_in_two_stages(
    which: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = request.getfixturevalue(which)
    args = inputs_of(model, 5)
    want = image(model, args)
    monkeypatch.setattr(stages, "LARGE", 4 << 10)
    monkeypatch.setattr(stages, "TOGETHER", 12 << 10)
    made = deploy(model)
    assert made.front is not None
    for again in (made, pickle.loads(pickle.dumps(made)), copy.deepcopy(made)):
        for chunk in (None, 1, 2, 5):
            again.chunk = chunk
            assert (image(again, args) - want).abs().max() <= 2e-5 * want.abs().max(), chunk


def test_values_that_do_not_follow_the_batch_stay_in_one_graph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stages, "LARGE", 4 << 10)

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.up = nn.Conv2d(2, 4, 3, padding=1), nn.Upsample(scale_factor=8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            turned = y.mean((1, 2, 3))[None]  # the batch is the second dimension
            return self.up(y) * turned.sum(0)[:, None, None, None]

    model = Turned().eval().requires_grad_(False)

    def inputs(n: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        return (torch.randn(n, 2, 8, 8, generator=generator),)

    made = deploy(model, inputs=inputs)
    x = torch.randn(3, 2, 8, 8)
    made.chunk = 1
    assert torch.allclose(made(x), model(x), atol=1e-5)


def test_a_map_with_two_readers_is_not_swallowed() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.point = nn.Conv2d(4, 8, 1, bias=False)
            self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
            self.up = nn.Upsample(scale_factor=2)
            self.conv = nn.Conv2d(8, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.point(x)
            z = self.depth(y)
            u = self.up(F.glu(z, 1).repeat(1, 2, 1, 1) + y + z)
            return self.conv(u) + u[:, :4]

    torch.manual_seed(0)
    model = Twice().eval().requires_grad_(False)
    inputs = lambda n, g: (torch.randn(n, 4, 12, 12, generator=g),)  # noqa: E731
    x = torch.randn(2, 4, 12, 12)
    made = deploy(model, inputs=inputs)
    assert torch.allclose(made(x), model(x), atol=1e-5)
