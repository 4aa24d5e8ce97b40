"""Channel groups: what belongs together, and what must stay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dsconvert_adapters.projected_gan import Generator
from torch import Tensor, nn

from dsconvert import analyse
from dsconvert.records import Group
from tests import models


def groups_of(model: nn.Module, **options: Any) -> dict[str, Group]:
    return {g.name: g for g in analyse(model.eval(), **options).groups.groups}


class Body(nn.Module):
    """Convolutions of 8 channels around whatever a test puts in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(torch.relu(self.first(x))))

    def middle(self, x: Tensor) -> Tensor:
        raise NotImplementedError


def found(body: Body) -> dict[str, Group]:
    return groups_of(body, example_inputs=(torch.randn(1, 3, 8, 8),))


@pytest.mark.slow
def test_every_map_of_a_fastgan() -> None:
    g = Generator.from_config(resolution=128, ngf=8, z_dim=16)
    groups = groups_of(g)
    # Both halves of a gate are one channel; an excitation and the map that it scales as well.
    assert groups["synthesis.feat_16.1"].channels == 32
    assert groups["synthesis.feat_64.5"].producers == (
        "synthesis.feat_64.5",
        "synthesis.se_64.main.3",
    )
    assert groups["synthesis.feat_8.5"].consumers == (
        "synthesis.feat_16.1",
        "synthesis.se_128.main.1",
    )
    assert {n for n, x in groups.items() if x.locked} == {"synthesis.to_big"}
    assert groups["synthesis.to_big"].locked == "they are the model's output"


@pytest.mark.slow
def test_conditional_normalisations_follow() -> None:
    g = Generator.from_config(resolution=128, ngf=8, z_dim=16, classes=3)
    analysis = analyse(g.eval())
    free = [x.name for x in analysis.groups.free()]
    assert "synthesis.feat_64.conv1" in free
    assert "synthesis.feat_64.bn1" in analysis.groups.channels.entries


def test_a_residual_sum_ties() -> None:
    class Residual(Body):
        def middle(self, x: Tensor) -> Tensor:
            return x + self.second(x)

    (group,) = [g for g in found(Residual()).values() if g.locked is None]
    assert group.producers == ("first", "second")
    assert group.consumers == ("second", "last")


def test_a_concatenation_does_not() -> None:
    class Skip(Body):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Conv2d(16, 3, 3, padding=1)

        def middle(self, x: Tensor) -> Tensor:
            return torch.cat([x, self.second(x)], 1)

    free = [g for g in found(Skip()).values() if g.locked is None]
    assert [(g.name, g.consumers) for g in free] == [
        ("first", ("second", "last")),
        ("second", ("last",)),
    ]


def test_moved_and_flattened_channels_are_followed() -> None:
    class Moved(Body):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(8 * 4, 6)

        def forward(self, x: Tensor) -> Tensor:
            y = nn.functional.adaptive_avg_pool2d(torch.relu(self.first(x)), 2)
            return self.line(y.permute(0, 1, 3, 2).flatten(1))

    groups = found(Moved())
    assert groups["first"].locked is None
    assert groups["first"].consumers == ("line",)


def test_a_pixel_shuffle_ties_four_channels() -> None:
    class Shuffled(Body):
        def __init__(self) -> None:
            super().__init__()
            self.second = nn.Conv2d(8, 32, 3, padding=1)

        def middle(self, x: Tensor) -> Tensor:
            return nn.functional.relu(nn.PixelShuffle(2)(self.second(x)))

    class AsModule(Shuffled):
        def __init__(self) -> None:
            super().__init__()
            self.shuffle = nn.PixelShuffle(2)

        def middle(self, x: Tensor) -> Tensor:
            return self.shuffle(self.second(x))

    assert found(AsModule())["second"].channels == 8


def test_depthwise_convolutions_and_own_parameters_follow() -> None:
    class Own(Body):
        def __init__(self) -> None:
            super().__init__()
            self.filter = nn.Conv2d(8, 8, 3, padding=1, groups=8)
            self.scale = nn.Parameter(torch.rand(1, 8, 1, 1))
            self.norm = nn.InstanceNorm2d(8, affine=True)

        def middle(self, x: Tensor) -> Tensor:
            return self.norm(self.filter(x)) * self.scale

    assert found(Own())["first"].locked is None


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        (lambda self, x: x.softmax(1), "softmax"),
        (lambda self, x: x.mean(1, keepdim=True) + x, "mean"),
        (lambda self, x: self.group(x), "does not work channel by channel"),
        (lambda self, x: x + torch.ones(1, 8, 1, 1), "fixed size"),
        (lambda self, x: torch.einsum("nchw,ncHW->nhwHW", x, x)[:, None, 0, 0] + x, "einsum"),
    ],
)
def test_what_is_not_followed_stays(middle: Any, reason: str) -> None:
    class Mixed(Body):
        def __init__(self) -> None:
            super().__init__()
            self.group = nn.GroupNorm(2, 8)

        def middle(self, x: Tensor) -> Tensor:
            return middle(self, x)

    assert reason in (found(Mixed())["first"].locked or "")


def test_code_that_counts_channels_is_found_by_running_it() -> None:
    class Counts(Body):
        def middle(self, x: Tensor) -> Tensor:
            # The graph holds the result of a function of the number of channels: 8.
            return x * float(self.first.out_channels) ** -0.5

    assert found(Counts())["first"].locked is not None


@pytest.mark.slow
def test_shared_modules_tie_their_calls() -> None:
    groups = groups_of(models.decoder(), inputs=models.latents)
    assert groups["start"].locked is None
    assert groups["block1.1"].channels == 24
    assert groups["block1.5"].producers == ("block1.5", "shared")
    assert groups["block1.5"].locked == "mix is a grouped convolution"


def test_without_inputs_there_are_no_groups() -> None:
    assert groups_of(models.decoder()) == {}
