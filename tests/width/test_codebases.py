"""The channel groups of other codebases, and modules that declare their channels."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from dsconvert_adapters import lightweight_gan
from torch import Tensor, nn

from dsconvert.adapter import Narrows
from dsconvert.core.analysis import analyse
from dsconvert.width import narrow
from tests.adapters.stylegan2_files import made
from tests.made_models import moved
from tests.models import output


def groups_of(model: nn.Module, **options: Any) -> tuple[Any, dict[str, str | None]]:
    analysis = analyse(model.eval(), **options)
    return analysis, {g.name: g.locked for g in analysis.groups.groups}


@pytest.mark.slow
@pytest.mark.parametrize(
    "architecture", ["skip", "resnet", pytest.param("orig", marks=pytest.mark.extended)]
)
def test_styles_follow_the_maps_that_they_scale(architecture: str) -> None:
    # As many channels as numbers in a latent and as pixels: neither may be taken for channels.
    g: Any = made(architecture=architecture, channel_max=16, channel_base=256)
    analysis, found = groups_of(g)
    free = [name.removeprefix("synthesis.") for name, why in found.items() if why is None]
    first = {"b8": "b8.conv0.demod.conv", "b16": "b16.conv0.demod.conv"}
    second = {"b8": "b8.conv1.demod.conv", "b16": "b16.conv1.demod.conv"}
    if architecture == "resnet":  # one map with the branch beside it, which runs first
        first, second = {b: f"{b}.skip.conv" for b in first}, first
    assert free == ["b4.conv1.demod.conv", first["b8"], second["b8"], first["b16"], second["b16"]]
    assert [why for why in found.values() if why] == ["they are the model's output"]
    kept = {g.name: range(8) for g in analysis.groups.free()}
    slim: Any = narrow(g, analysis.groups, kept).synthesis
    assert slim.b8.conv1.affine.weight.shape == (8, 16)
    assert slim.b8.conv1.affine.bias.shape == slim.b8.conv1.bias.shape == (8,)
    assert slim.b8.conv1.demod.gain.shape == (8,)
    assert (slim.b8.conv0.in_channels, slim.b8.conv0.out_channels) == (8, 8)
    assert slim.b16.torgb.affine.weight.shape == (8, 16)
    # The scale of the image's layer is still that of the training.
    assert slim.b16.torgb.scale == pytest.approx(1 / 4)
    assert g.synthesis.b8.conv1.affine.weight.shape == (16, 16)


@pytest.mark.slow
def test_lightweight_gan_keeps_what_compares_channels() -> None:
    g = lightweight_gan.Generator(
        latent_dim=16,
        channels=[16, 32, 32, 16, 16, 16],
        gates={1: "frequency"},
        attention={1: 2, 3: 1},
        antialias=True,
    )
    _, found = groups_of(moved(g))
    assert str(found["initial_conv.0"]).startswith("normalize ")
    assert str(found["layers.0.0.2.1"]).startswith("var ")  # normalised before the attention
    assert found["layers.1.2.fn.to_q"] is not None  # heads
    free = {name for name, why in found.items() if why is None}
    assert {"layers.1.0.2.1", "layers.1.1.net.0", "layers.1.1.net.2"} <= free  # the gate's sides
    assert {f"layers.{i}.0.0.net.0" for i in range(5)} <= free  # in front of each pixel shuffle


class Scaled(nn.Module):
    """Multiplies its second argument, in a way that can't be found by running it on a part."""

    channels_of: ClassVar[int] = 1

    def __init__(self, size: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.linspace(0.5, 1, size))

    def forward(self, styles: Tensor, x: Tensor) -> Tensor:
        if bool(styles.isnan().any()):  # torch.fx can't trace this
            raise ValueError
        return x * self.gain[:, None, None] * styles.square().mean(1)[:, None, None, None]

    def narrow(self, kept: Tensor) -> None:
        self.gain = nn.Parameter(self.gain.detach()[kept])


class Styled(nn.Module):
    """A module that declares its channels, and a linear layer with a computed weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 16, 3, padding=1)
        self.scaled = Scaled(16)
        self.weight = nn.Parameter(torch.randn(16, 4))
        self.offset = nn.Parameter(torch.randn(16))
        self.last = nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        styles = x.mean((2, 3))
        shift = torch.nn.functional.linear(styles, self.weight * 0.5, self.offset * 2)
        return self.last(torch.relu(self.scaled(styles, self.first(x)) + shift[:, :, None, None]))


def test_modules_declare_their_channels() -> None:
    torch.manual_seed(0)
    model = Styled().eval()
    assert isinstance(model.scaled, Narrows)
    x = torch.randn(2, 4, 6, 6)
    analysis, found = groups_of(model, example_inputs=(x,))
    assert found == {"first": None, "last": "they are the model's output"}
    slim: Any = narrow(model, analysis.groups, {"first": [1, 5, 6]})
    assert slim.weight.shape == (3, 4)
    assert slim.offset.shape == slim.scaled.gain.shape == (3,)
    with torch.no_grad():
        silent = torch.ones(16, dtype=torch.bool)
        silent[[1, 5, 6]] = False
        model.last.weight[:, silent] = 0
    assert torch.allclose(output(slim, x), output(model, x), atol=1e-5)
