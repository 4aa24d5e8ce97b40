"""Channel groups: what belongs together, and what must stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from dsconvert_adapters.projected_gan import Generator
from torch import Tensor, nn

from dsconvert import analyse
from dsconvert.records import Group
from dsconvert.width import narrow
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

    class AsFunction(Shuffled):
        def middle(self, x: Tensor) -> Tensor:
            return nn.functional.pixel_shuffle(self.second(x), 2)

    for body in (AsModule(), AsFunction()):
        assert (found(body)["second"].channels, found(body)["second"].locked) == (8, None)


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
    "function",
    [
        nn.functional.instance_norm,
        lambda x: nn.functional.max_pool2d(x, 3, 1, 1),
        lambda x: nn.functional.avg_pool1d(x.flatten(2), 2).unsqueeze(3),
        lambda x: nn.functional.conv1d(
            x.flatten(2), torch.ones(x.shape[1], 1, 3), groups=x.shape[1]
        ).unsqueeze(3),
    ],
)
def test_functions_within_a_channel_follow(function: Callable[[Tensor], Tensor]) -> None:
    class Within(Body):
        def middle(self, x: Tensor) -> Tensor:
            return function(x)

    assert found(Within())["first"].locked is None


@pytest.mark.parametrize("shape", [(1,), (1, 1, 1, 1)])
def test_one_number_for_all_channels_locks_nothing(shape: tuple[int, ...]) -> None:
    class Weighted(Body):
        def __init__(self) -> None:
            super().__init__()
            self.gamma = nn.Parameter(torch.full(shape, 0.3))

        def middle(self, x: Tensor) -> Tensor:
            return x + self.gamma * self.second(x)

    assert found(Weighted())["first"].locked is None


class Noisy(Body):
    """Adds a plane of noise that is stored with the model, scaled per channel or not at all."""

    def __init__(self, *shape: int, scale: bool = False) -> None:
        super().__init__()
        self.register_buffer("noise", torch.randn(shape))
        self.scale = nn.Parameter(torch.rand(8, 1, 1)) if scale else None

    def middle(self, x: Tensor) -> Tensor:
        noise = self.get_buffer("noise")
        return x + (noise if self.scale is None else self.scale * noise)


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("shape", [(8, 8), (1, 1, 8, 8)])
def test_a_plane_of_noise_locks_nothing(shape: tuple[int, ...], scale: bool) -> None:
    assert found(Noisy(*shape, scale=scale))["first"].locked is None


def test_a_parameter_of_fixed_size_along_the_channels_locks_them() -> None:
    # Its first dimension above one is not that of the channels.
    assert "fixed size" in (found(Noisy(2, 8, 8, 8))["first"].locked or "")


class Chunks(Body):
    """Two convolutions, each on one half of a map."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Conv2d(8, 64, 3, padding=1)
        self.a = nn.Conv2d(32, 16, 3, padding=1)
        self.b = nn.Conv2d(32, 16, 3, padding=1)
        self.last = nn.Conv2d(32, 3, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        a, b = self.second(x).chunk(2, 1)
        return torch.cat([self.a(a), self.b(b)], 1)


def test_halves_that_are_found_by_counting_stay() -> None:
    groups = found(Chunks())
    assert {n: (g.channels, g.consumers) for n, g in groups.items() if g.locked} == {
        "second": (32, ("a",)),
        "second#2": (32, ("b",)),
        "last": (3, ()),
    }
    assert "depends on the number of channels" in (groups["second#2"].locked or "")
    # The others have been checked again without them.
    assert [n for n, g in groups.items() if g.locked is None] == ["first", "a", "b"]


def test_a_part_that_a_consumer_reads_is_a_group() -> None:
    torch.manual_seed(0)
    model = models.UNet().eval()
    x = torch.randn(2, 3, 16, 16)
    analysis = analyse(model, example_inputs=(x,))
    groups = {g.name: g for g in analysis.groups.free()}
    # The encoder reads a part of the map that the residual block writes.
    assert {n: (g.channels, g.producers, g.consumers) for n, g in groups.items()} == {
        "first": (16, ("first", "inner"), ("down", "outer", "last")),
        "down": (24, ("down",), ("up",)),
        "up": (16, ("up", "inner"), ("outer", "last")),
        "outer": (32, ("outer",), ("inner",)),
    }
    kept = {"first": [0, 3, 5], "up": [1, 15], "outer": list(range(9))}
    slim = narrow(model, analysis.groups, kept)
    shapes = {n: tuple(c.weight.shape[:2]) for n, c in slim.named_children()}
    assert shapes == {
        "first": (3, 3), "down": (24, 3), "up": (24, 2), "outer": (9, 5), "inner": (5, 9),
        "last": (3, 5),
    }  # fmt: skip
    concatenated = torch.tensor([*(16 + i for i in kept["first"]), *kept["up"]])
    with torch.no_grad():
        for layer, staying in (
            (model.down, torch.tensor(kept["first"])), (model.outer, concatenated),
            (model.last, concatenated), (model.inner, torch.arange(9)),
        ):  # fmt: skip
            silent = torch.ones(layer.in_channels, dtype=torch.bool)
            silent[staying] = False
            layer.weight[:, silent] = 0
        torch.testing.assert_close(slim(x), model(x), atol=1e-5, rtol=1e-4)


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
