"""The distance of a student to its teacher: blocks, image, projected features.

Every term is ``E[(s - t)^2] / var(t)``. Dividing by the teacher's variance, channel by channel,
makes a faint channel as important as a loud one and the terms comparable (FitNets, Romero et al.
2015, matched hidden maps; the maps of a frozen backbone as a perceptual distance are Johnson et al.
2016, here in the feature space that a Projected GAN is judged in, Sauer et al. 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsconvert.adapter import image_tensor
from dsconvert.projected.lite0 import Weights, three_channels
from dsconvert.projected.projector import Projector
from dsconvert.train.recompute import convolutional

Args = tuple[Any, ...]
FLOOR = 1e-3
"""A channel's variance counts as this share of the mean one at least."""


@contextmanager
def seeded(seed: int) -> Generator[None, None, None]:
    """Draws of the models (noise injection) follow from ``seed``; the caller's state is kept."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def trunk_blocks(model: nn.Module) -> tuple[str, ...]:
    """Names of the blocks that make the picture.

    From the root down while one child alone holds every convolution; the children there that hold
    any are the blocks.
    """
    prefix, here = "", model
    while True:
        inside = [(n, c) for n, c in here.named_children() if convolutional(c)]
        if len(inside) != 1:
            return tuple(prefix + n for n, _ in inside)
        name, here = inside[0]
        prefix += f"{name}."


@dataclass
class Tap:
    """Keeps what named children are given and give during a forward call."""

    model: nn.Module
    names: tuple[str, ...]
    inputs: dict[str, Args] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    replace: dict[str, Args] | None = None
    """Arguments that the children get instead of their own."""

    @contextmanager
    def listening(self) -> Generator[None, None, None]:
        """Listen for a while; what was heard stays until the next time."""
        self.inputs, self.outputs, self.calls = {}, {}, {}
        handles: list[Any] = []
        for name in self.names:
            module = self.model.get_submodule(name)
            handles.append(module.register_forward_pre_hook(self._before(name)))
            handles.append(module.register_forward_hook(self._after(name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, name: str) -> Callable[[nn.Module, Args], Args | None]:
        def hook(_module: nn.Module, args: Args) -> Args | None:
            if self.replace is not None:
                return self.replace[name]
            self.inputs[name] = args
            return None

        return hook

    def _after(self, name: str) -> Callable[[nn.Module, Args, Any], None]:
        def hook(_module: nn.Module, _args: Args, output: Any) -> None:
            self.calls[name] = self.calls.get(name, 0) + 1
            if isinstance(output, Tensor):
                self.outputs[name] = output

        return hook


class ProjectedMaps(nn.Module):
    """Images in [-1, 1] to the four maps of the discriminator's frozen backbone.

    Raises:
        MissingExtraError: timm or the backbone's weights are not installed.
    """

    def __init__(self, *, size: int, weights: Weights = "auto") -> None:
        super().__init__()
        with torch.random.fork_rng():
            self.projector = Projector(weights=weights)
        self.size = size

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, C, R, R) to maps of 24, 40, 112 and 320 channels; gradients flow to ``images``."""
        x = three_channels(images)
        if x.shape[-1] > self.size:
            x = F.interpolate(
                x, (self.size, self.size), mode="bilinear", align_corners=False, antialias=True
            )
        return self.projector.backbone(x)


@dataclass(frozen=True, kw_only=True)
class Target:
    """What the teacher made of one batch."""

    args: Args
    image: Tensor
    blocks: dict[str, Tensor]
    inputs: dict[str, Args]
    maps: list[Tensor]
    seed: int


@dataclass(frozen=True, kw_only=True)
class Scales:
    """The teacher's variances: what each squared error is divided by."""

    image: Tensor
    blocks: dict[str, Tensor]
    maps: list[Tensor]

    def state(self) -> dict[str, Any]:
        """As a checkpoint holds it."""
        return {"image": self.image, "blocks": self.blocks, "maps": self.maps}


def _variance(values: Tensor) -> Tensor:
    variance = values.var((0, 2, 3), keepdim=True)
    return variance.clamp_min(FLOOR * float(variance.mean()) + 1e-12)


def error(student: Tensor, teacher: Tensor, scale: Tensor) -> Tensor:
    """``mean((s - t)^2 / var(t))``."""
    return ((student - teacher).square() / scale).mean()


class Objective:
    """Runs teacher and student on shared latents and noise, and measures between them.

    Args:
        teacher: in eval mode, without gradients.
        student: any module that takes the teacher's arguments and gives images of its size.
        blocks: names that both have; those whose outputs differ in shape are left out.
        features: the backbone, or None.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        *,
        blocks: Sequence[str],
        features: ProjectedMaps | None,
    ) -> None:
        self.teacher, self.student, self.features = teacher, student, features
        self._teach = Tap(teacher, tuple(blocks))
        self._learn = Tap(student, tuple(blocks))
        self.blocks = tuple(blocks)

    @torch.no_grad()
    def teach(self, args: Args, seed: int, *, maps: bool = True) -> Target:
        """The teacher's side of one batch."""
        with seeded(seed), self._teach.listening():
            image = image_tensor(self.teacher(*args))
        return Target(
            args=args,
            image=image,
            blocks=dict(self._teach.outputs),
            inputs=dict(self._teach.inputs),
            maps=self.features(image) if self.features is not None and maps else [],
            seed=seed,
        )

    def learn(self, target: Target, *, alone: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        """The student's image and block outputs, with the target's noise.

        Args:
            target: whose latents and noise.
            alone: give each block the teacher's input instead of the block's before.
        """
        self._learn.replace = target.inputs if alone else None
        with seeded(target.seed), self._learn.listening():
            image = image_tensor(self.student(*target.args))
        return image, dict(self._learn.outputs)

    def compatible(self, target: Target) -> tuple[str, ...]:
        """The blocks whose outputs have one shape on both sides; only they are compared from now.

        A block counts where it ran once on both sides and gave a map (of a block that is shared,
        and runs several times, no call stands for all).
        """
        present = set(dict(self.student.named_modules()))
        both = tuple(n for n in target.blocks if n in present and self._teach.calls[n] == 1)
        self._learn.names = both
        with torch.no_grad(), seeded(target.seed), self._learn.listening():
            self.student(*target.args)
        mine = self._learn.outputs
        self.blocks = tuple(
            n
            for n in both
            if self._learn.calls.get(n) == 1
            and n in mine
            and mine[n].dim() == 4
            and mine[n].shape == target.blocks[n].shape
        )
        self._teach.names = self._learn.names = self.blocks
        return self.blocks

    @torch.no_grad()
    def scales(self, targets: Sequence[Target]) -> Scales:
        """Variances of what the teacher makes, over some batches."""
        return Scales(
            image=torch.cat([t.image for t in targets]).var().clamp_min(1e-12),
            blocks={n: _variance(torch.cat([t.blocks[n] for t in targets])) for n in self.blocks},
            maps=[_variance(torch.cat(m)) for m in zip(*(t.maps for t in targets), strict=True)],
        )

    def terms(
        self, target: Target, image: Tensor, blocks: dict[str, Tensor], scales: Scales
    ) -> dict[str, Tensor]:
        """Image, blocks (their mean) and features (their mean), each normalised."""
        found: dict[str, Tensor] = {"image": error(image, target.image, scales.image)}
        if self.blocks:
            each = [error(blocks[n], target.blocks[n], scales.blocks[n]) for n in self.blocks]
            found["blocks"] = torch.stack(each).mean()
        if target.maps and self.features is not None:
            maps = self.features(image)
            pairs = zip(maps, target.maps, scales.maps, strict=True)
            found["features"] = torch.stack([error(s, t, v) for s, t, v in pairs]).mean()
        return found
