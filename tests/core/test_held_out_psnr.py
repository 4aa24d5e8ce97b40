"""The PSNR of a conversion on the latents that the fit held out, and what is said of its plan."""

from __future__ import annotations

import pytest
import torch
from dsconvert_adapters.lightweight_gan import ADAPTER
from torch import nn

import dsconvert
from dsconvert.core.held_out_psnr import held_out_psnr, held_out_snr
from dsconvert.data.pictures import psnr
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
    assert reasons["image"].startswith("makes the image (3 channels)")
    # 4 channels, and no image: an excitation branch; 3 channels, and not the largest map.
    assert reasons["gate"] == "writes 4 channels: little to gain"
    assert reasons["small"] == "writes 3 channels: little to gain"
    assert reasons["start"].startswith("turns the latent into the first map")
    unknown = {d.site: d.reason for d in dsconvert.plan(Gated()).decisions}
    assert "unknown size" in unknown["start"]
    assert unknown["image"] == "writes 3 channels: little to gain"


def test_a_promise_that_cannot_be_kept_is_said_as_such() -> None:
    plan = dsconvert.plan(Gated(inner=16), inputs=latents)
    assert plan.note is not None
    assert plan.note.startswith("balanced aims at 5x fewer MACs and reaches about ")
    assert "grouped" in plan.note
    assert dsconvert.plan(Gated(), preset="fast", inputs=latents).note is None


@pytest.mark.slow
def test_a_promise_that_is_kept_needs_no_word() -> None:
    # Wide enough: what balanced leaves alone costs little.
    assert dsconvert.plan(moved_generator(ngf=32), preset="balanced").note is None


def test_the_ratio_of_sounds() -> None:
    wanted = torch.ones(2, 1, 1, 50)
    assert held_out_snr((wanted * 1.1, wanted), None) == pytest.approx(20, abs=0.01)
    assert held_out_snr((wanted, torch.zeros_like(wanted)), None) is None  # silence
    assert held_out_snr((wanted.mT, wanted.mT), None) is None  # no sound
