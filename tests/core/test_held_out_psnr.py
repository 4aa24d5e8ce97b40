"""The PSNR of a conversion on the latents that the fit held out, and what is said of its plan."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from dsconvert_adapters.lightweight_gan import ADAPTER
from torch import nn

import dsconvert
from dsconvert.core.held_out_psnr import held_out_psnr, held_out_snr, judged, picture_range
from dsconvert.data.pictures import psnr
from dsconvert.errors import UsageError
from dsconvert.records import Conversion
from dsconvert.report.jsonable import conversion_dict
from tests.made_models import moved_generator
from tests.models import decoder


def image(low: float = -1.0, high: float = 1.0, channels: int = 3) -> torch.Tensor:
    draws = torch.rand(4, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    return draws * (high - low) + low


def noisy(x: torch.Tensor, size: float) -> torch.Tensor:
    return x + size * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))


def test_the_definition_is_that_of_images() -> None:
    wanted, made = image(), noisy(image(), 0.05)
    value = held_out_psnr((made, wanted))
    assert value == pytest.approx(float(psnr(made, wanted).mean()))
    assert held_out_psnr(([made, "more"], [wanted, "more"])) == value


def test_an_image_in_zero_to_one_is_not_flattered() -> None:
    """The same picture at another range has the same PSNR."""
    wanted = image(0, 1)
    made = noisy(wanted, 0.01).clamp(0, 1)
    assert held_out_psnr((made, wanted)) == pytest.approx(
        float(psnr(made * 2 - 1, wanted * 2 - 1).mean())
    )


def test_a_little_overshoot_does_not_change_the_range() -> None:
    """Nothing clamps what a VAE or a super-resolution network makes."""
    wanted = image(-0.02, 1.02)
    made = noisy(wanted, 0.05)
    assert picture_range(wanted, known=False) == "0 to 1"
    assert held_out_psnr((made, wanted)) == held_out_psnr((made, wanted), None, "unit")
    spot = wanted.clone()
    spot[0, 0, 0, 0] = -3.0
    dark = noisy(torch.zeros(4, 3, 64, 64), 0.01)
    dark[..., 20:40] = 0.8
    many = torch.cat([image(0, 1).repeat(4, 1, 8, 8), dark[:, :, :8, :8].repeat(4, 1, 8, 8)])
    many[0, 0, 0, 0] = -3.0  # one pixel in 400,000
    assert picture_range(dark, known=False) == picture_range(many, known=False) == "0 to 1"
    # What else is in [-1, 1]: around 0 with little contrast, or white but for some strokes.
    white = torch.ones(4, 1, 64, 64)
    white[..., 30:32, :] = -1.0
    for signed in (image(-0.1, 0.1), white, image(-1, 1)):
        assert picture_range(signed, known=False) == "-1 to 1"
    assert picture_range(image(-3, 3), known=False) is None
    assert picture_range(image(0, 1) * torch.nan, known=False) is None


def test_a_guessed_range_and_a_missing_psnr_are_said() -> None:
    def notes(low: float, high: float, **given: object) -> tuple[str, ...]:
        x = image(low, high)
        return judged((noisy(x, 0.01), x), **given).notes  # type: ignore[arg-type]

    assert notes(0, 1) == ("images taken as [0, 1], by their values",)
    assert notes(-1, 1) == ("images taken as [-1, 1], by their values",)
    assert notes(0, 1, values="unit") == notes(-1, 1, adapter=ADAPTER) == ()
    (said,) = notes(0, 255)
    assert said.startswith("no PSNR: the output ranges over ")
    assert said.endswith(", no image in [-1, 1] or [0, 1]")
    assert judged((torch.zeros(4, 16, 8, 8), torch.zeros(4, 16, 8, 8))).notes == ()


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_the_error_is_a_share_of_what_a_constant_has(scale: float) -> None:
    """Also of outputs that are no images."""
    wanted = image() * scale
    constant = wanted.mean(0, keepdim=True).expand_as(wanted)
    assert judged((wanted, wanted)).error == 0
    # The mean of four lies nearer to them than the mean of all.
    assert judged((constant, wanted)).error == pytest.approx(3 / 4)
    latent = {"z": wanted.flatten(1)}
    assert judged(({"z": constant.flatten(1)}, latent)).error == pytest.approx(3 / 4)
    assert judged((constant, constant)).error is None  # nothing that could be lost
    assert judged((None, None)).error is None


class Bright(nn.Module):
    """Images in [0, 1], nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(8, 16, 3, padding=1)
        self.two = nn.Conv2d(16, 16, 3, padding=1)
        self.image = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(4 * self.image(torch.relu(self.two(torch.relu(self.one(x))))))


def maps(n: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    return (torch.randn(n, 8, 8, 8, generator=generator),)


def test_the_caller_states_the_range() -> None:
    torch.manual_seed(0)
    model = Bright().eval()
    plan = dsconvert.plan(model, preset="paper", inputs=maps)

    def made(**given: object) -> Conversion:
        return dsconvert.apply(model, plan, inputs=maps, calibrate=8, **given)  # type: ignore[arg-type]

    guessed, unit, signed = made(), made(values="unit"), made(values="signed")
    assert guessed.psnr == unit.psnr
    assert unit.psnr == pytest.approx((signed.psnr or 0) - 20 * math.log10(2))
    assert "images taken as [0, 1], by their values" in guessed.notes
    assert not any("taken as" in n for n in (*unit.notes, *signed.notes))
    with pytest.raises(UsageError, match=r"'unit' .* not 'byte'"):
        made(values="byte")


def test_a_spoilt_picture_is_not_silent() -> None:
    torch.manual_seed(0)
    model = Bright().eval()
    plan = dsconvert.plan(model, preset="paper", inputs=maps)
    made = dsconvert.apply(model, plan, inputs=maps, calibrate=8)
    near = replace(made, psnr=31.0, output_error=0.02)
    assert near.warnings == replace(made, psnr=45.0, output_error=0.5).warnings == ()
    assert replace(made, psnr=None, output_error=0.2).warnings == ()
    (warning,) = replace(near, psnr=23.3, output_error=1.32).warnings
    assert warning.startswith(
        "the images of this Bright are 23.3 dB (PSNR) from the original's and have an error of "
        "132 % of the original's variance, where one constant image is at about 24.5 dB: they are "
        "likely to be spoilt. The largest errors of the fit are those of "
    )
    assert "two (" in warning
    assert warning.endswith(
        "Polish for longer (--polish 5), give higher ranks (--rank 4), or keep layers dense "
        "(--keep NAME)."
    )
    (dim,) = replace(near, psnr=15.2, output_error=None).warnings
    assert dim.startswith("the images of this Bright are 15.2 dB (PSNR) from the original's: they")
    (other,) = replace(near, psnr=None, output_error=0.7).warnings
    assert other.startswith(
        "the outputs of this Bright have an error of 70 % of the original's variance (a constant "
        "output: 100 %): they are likely to be spoilt. "
    )


def test_a_conversion_that_is_no_better_than_a_constant_warns() -> None:
    """One filter a channel of the first layer, unfitted: nothing of the picture is left."""
    torch.manual_seed(0)
    model = nn.Sequential(*Bright().eval().children())
    plan = dsconvert.plan(model, preset="paper", inputs=maps)
    made = dsconvert.apply(model, plan, inputs=maps, init="svd", calibrate=8)
    assert made.output_error is not None
    assert made.output_error > 0.25
    assert made.warnings
    assert conversion_dict(made)["warnings"] == list(made.warnings)


def test_an_adapter_knows_the_range() -> None:
    wanted = image(0, 1)
    made = noisy(wanted, 0.01)
    value = held_out_psnr((made, wanted), ADAPTER)
    assert value == pytest.approx(float(psnr(made * 2 - 1, wanted * 2 - 1).mean()))


@pytest.mark.parametrize(
    "output",
    [
        torch.zeros(4, 10),
        {"features": torch.zeros(4, 10)},
        torch.zeros(4, 16, 8, 8),
        torch.zeros(4, 3, 1, 1),
        255 * image(0, 1),
        None,
    ],
)
def test_what_is_no_image_has_none(output: object) -> None:
    assert held_out_psnr((output, output)) is None
    assert held_out_psnr(None) is None


@pytest.mark.slow
def test_a_conversion_knows_its_psnr() -> None:
    """Measured again on other latents of the same distribution, it is about the same."""
    model = moved_generator()
    result = dsconvert.apply(model, dsconvert.plan(model, preset="fast", rank=4), calibrate=32)
    assert result.psnr is not None
    z = torch.randn(8, model.z_dim, generator=torch.Generator().manual_seed(99))
    images = []
    for each in (model, result.model):
        torch.manual_seed(3)
        with torch.no_grad():
            images.append(each.eval()(z, torch.zeros(8, 0)))
    assert result.psnr == pytest.approx(float(psnr(images[1], images[0]).mean()), abs=3.0)
    small = decoder()
    made = dsconvert.plan(small, preset="paper", inputs=latents)
    without = dsconvert.apply(small, made, inputs=latents, init="svd", calibrate=0)
    assert without.psnr is None


class Gated(nn.Module):
    """An image, an excitation branch of few channels beside it, and a grouped convolution."""

    def __init__(self, inner: int = 8) -> None:
        super().__init__()
        self.start = nn.ConvTranspose2d(16, inner, 4)
        self.gate = nn.Conv2d(inner, 4, 4)
        self.open = nn.Conv2d(4, inner, 1)
        self.body = nn.Conv2d(inner, inner, 3, padding=1)
        self.grouped = nn.Conv2d(inner, inner, 3, padding=1, groups=2)
        self.image = nn.Conv2d(inner, 3, 3, padding=1)
        self.small = nn.Conv2d(inner, 3, 3, padding=1)

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.start(z[:, :, None, None])
        y = nn.functional.interpolate(x, scale_factor=4)
        y = self.grouped(self.body(y)) * torch.sigmoid(self.open(self.gate(x)))
        return torch.tanh(self.image(y)), self.small(x)


def latents(n: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    return (torch.randn(n, 16, generator=generator),)


def test_reasons_are_true() -> None:
    plan = dsconvert.plan(Gated(), inputs=latents)
    reasons = {d.site: d.reason for d in plan.decisions}
    assert reasons["image"].startswith("makes the image (3 channels), which shows all")
    # 4 channels, and no image: an excitation branch; 3 channels, and not the largest map.
    assert reasons["gate"].startswith("writes 4 channels: a separable form saves less than 4x")
    assert reasons["small"].startswith("writes 3 channels: a separable form saves less than 3x")
    assert reasons["start"].startswith("turns the latent into the first map")
    unknown = {d.site: d.reason for d in dsconvert.plan(Gated()).decisions}
    assert "unknown size" in unknown["start"]
    assert unknown["image"] == "writes 3 channels: a separable form saves less than 3x"


def test_the_reason_of_a_costly_layer_says_how_costly_it_is() -> None:
    """The kernels of 7x7 at both ends of a CycleGAN hold most of the MACs that stay."""
    layers = [nn.Conv2d(3, 32, 7, padding=3), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
              nn.Conv2d(32, 3, 7, padding=3), nn.Tanh()]  # fmt: skip
    x = torch.randn(1, 3, 16, 16)
    plan = dsconvert.plan(nn.Sequential(*layers), example_inputs=(x,))
    macs = {d.site: d.macs_after or 0 for d in plan.decisions}
    share = f"{100 * macs['4'] / sum(macs.values()):.0f} % of the MACs that stay"
    reasons = {d.site: d.reason for d in plan.decisions}
    assert reasons["0"] == f"reads 3 channels: a separable form has too few filters; {share}"
    assert reasons["4"] == f"makes the image (3 channels), which shows all of its errors; {share}"
    blind = {d.site: d.reason for d in dsconvert.plan(nn.Sequential(*layers)).decisions}
    assert blind["0"] == "reads 3 channels: a separable form has too few filters"
    kept = dsconvert.plan(nn.Sequential(*layers), example_inputs=(x,), keep=["4"])
    assert kept.decisions[-1].reason == "kept on request (--keep)"


def test_a_promise_that_cannot_be_kept_is_said_as_such() -> None:
    plan = dsconvert.plan(Gated(inner=16), inputs=latents)
    assert plan.note is not None
    assert plan.note.startswith("balanced aims at 5x fewer MACs and reaches about ")
    assert "grouped" in plan.note
    assert dsconvert.plan(Gated(), preset="fast", inputs=latents).note is None


class Modulated(nn.Module):
    """Almost all of its MACs are in a convolution whose kernel depends on the sample."""

    def __init__(self) -> None:
        super().__init__()
        self.style = nn.Linear(16, 16)
        self.weight = nn.Parameter(torch.randn(16, 16, 3, 3) / 12)

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        kernel = self.weight * self.style(z)[:, None, :, None, None]
        joined = x.reshape(1, -1, *x.shape[2:])
        made = nn.functional.conv2d(joined, kernel.flatten(0, 1), padding=1, groups=len(x))
        return made.reshape(x.shape)


class Styled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 1)
        self.body = nn.ModuleList(Modulated() for _ in range(3))
        self.image = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for layer in self.body:
            x = layer(x, z)
        return torch.tanh(self.image(x))


def test_a_promise_that_is_missed_by_far_names_the_functions_that_convolve(
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = (torch.randn(1, 3, 16, 16), torch.randn(1, 16))
    plan = dsconvert.plan(Styled(), example_inputs=given)
    assert plan.missed
    assert plan.note is not None
    where = "(as F.conv2d) in body.0, body.1 and 1 more, which no rule rewrites (9"
    assert f"most of the MACs that remain are in convolutions called as functions {where}" in (
        plan.note
    )
    assert dsconvert.Plan.from_json(plan.to_json()) == plan
    with caplog.at_level("WARNING", logger="dsconvert"):
        dsconvert.convert(Styled(), example_inputs=given, init="svd", calibrate=0)
    assert any("reaches about 1.0x" in r.getMessage() for r in caplog.records)
    near = dsconvert.plan(Gated(inner=16), preset="fast", inputs=latents)
    assert (near.missed, "missed" in near.to_json()) == (False, False)


@pytest.mark.slow
def test_a_promise_that_is_kept_needs_no_word() -> None:
    # Wide enough: what balanced leaves alone costs little.
    assert dsconvert.plan(moved_generator(ngf=32), preset="balanced").note is None


def test_the_ratio_of_sounds() -> None:
    wanted = torch.ones(2, 1, 1, 50)
    assert held_out_snr((wanted * 1.1, wanted), None) == pytest.approx(20, abs=0.01)
    assert held_out_snr((wanted, torch.zeros_like(wanted)), None) is None  # silence
    assert held_out_snr((wanted.mT, wanted.mT), None) is None  # no sound
