"""The distance of a student to its teacher: blocks, image, projected features.

Every term is ``E[(s - t)^2] / var(t)``. Dividing by the teacher's variance, channel by channel,
makes channels of small and large values equally important, and the terms comparable. FitNets
(Romero et al. 2015) matched hidden maps; Johnson et al. 2016 compare the maps of a frozen backbone,
here those of a Projected GAN's discriminator (Sauer et al. 2021).
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
from dsconvert.config.distill import DistillConfig
from dsconvert.projected.lite0 import Weights, three_channels
from dsconvert.projected.projector import Projector
from dsconvert.train.recompute import convolutional

Args = tuple[Any, ...]
FLOOR = 1e-3
"""The least variance of a channel, as a share of the mean variance."""


@contextmanager
def seeded(seed: int) -> Generator[None, None, None]:
    """Seed the draws of the models (noise injection); the caller's random state stays."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def trunk_blocks(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the blocks that make the picture.

    Starting at the root, descend while a single child holds every convolution. The blocks are the
    children of the last module that hold convolutions.
    """
    prefix, here = "", model
    while True:
        inside = [(n, c) for n, c in here.named_children() if convolutional(c)]
        if len(inside) != 1:
            return tuple(prefix + n for n, _ in inside)
        name, here = inside[0]
        prefix += f"{name}."


@dataclass
class BlockRecorder:
    """Records the inputs and outputs of named children during a forward call."""

    model: nn.Module
    names: tuple[str, ...]
    inputs: dict[str, Args] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    replace: dict[str, Args] | None = None
    """Arguments that replace those of the children."""

    @contextmanager
    def recording(self) -> Generator[None, None, None]:
        """Record within this context; the records stay until the next one."""
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
    """Maps images in [-1, 1] to the four maps of the discriminator's frozen backbone.

    Raises:
        MissingExtraError: timm or the backbone's weights are not installed.
    """

    def __init__(self, *, size: int, weights: Weights = "auto") -> None:
        super().__init__()
        with torch.random.fork_rng():
            self.projector = Projector(weights=weights)
        self.size = size

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return maps of 24, 40, 112 and 320 channels of (N, C, R, R); gradients flow to it."""
        x = three_channels(images)
        if x.shape[-1] > self.size:
            x = F.interpolate(
                x, (self.size, self.size), mode="bilinear", align_corners=False, antialias=True
            )
        return self.projector.backbone(x)


@dataclass(frozen=True, kw_only=True)
class TeacherOutput:
    """The teacher's outputs for one batch, and its arguments and seed."""

    args: Args
    image: Tensor
    blocks: dict[str, Tensor]
    inputs: dict[str, Args]
    maps: list[Tensor]
    seed: int


@dataclass(frozen=True, kw_only=True)
class Scales:
    """The teacher's variances, which squared errors are divided by."""

    image: Tensor
    blocks: dict[str, Tensor]
    maps: list[Tensor]

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"image": self.image, "blocks": self.blocks, "maps": self.maps}


def _variance(values: Tensor) -> Tensor:
    variance = values.var((0, 2, 3), keepdim=True)
    return variance.clamp_min(FLOOR * float(variance.mean()) + 1e-12)


def relative_error(student: Tensor, teacher: Tensor, scale: Tensor) -> Tensor:
    """Return ``mean((s - t)^2 / var(t))``."""
    return ((student - teacher).square() / scale).mean()


class Objective:
    """Runs teacher and student on shared latents and noise, and compares them.

    Args:
        teacher: in eval mode, without gradients.
        student: any module that takes the teacher's arguments and makes images of its size.
        blocks: names of modules to compare; :meth:`keep_shared_blocks` drops some.
        features: the backbone; None: no features are compared.
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
        self._teacher_blocks = BlockRecorder(teacher, tuple(blocks))
        self._student_blocks = BlockRecorder(student, tuple(blocks))
        self.blocks = tuple(blocks)

    @torch.no_grad()
    def run_teacher(self, args: Args, seed: int, *, maps: bool = True) -> TeacherOutput:
        """Run the teacher on one batch; ``maps``: with the maps of the backbone."""
        with seeded(seed), self._teacher_blocks.recording():
            image = image_tensor(self.teacher(*args))
        return TeacherOutput(
            args=args,
            image=image,
            blocks=dict(self._teacher_blocks.outputs),
            inputs=dict(self._teacher_blocks.inputs),
            maps=self.features(image) if self.features is not None and maps else [],
            seed=seed,
        )

    def run_student(
        self, target: TeacherOutput, *, blockwise: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the student on the batch of ``target``; return its image and the blocks' outputs.

        Args:
            target: the teacher's outputs; the student gets the same latents and noise.
            blockwise: give each block the teacher's input instead of the previous block's output.
        """
        self._student_blocks.replace = target.inputs if blockwise else None
        with seeded(target.seed), self._student_blocks.recording():
            image = image_tensor(self.student(*target.args))
        return image, dict(self._student_blocks.outputs)

    def keep_shared_blocks(self, target: TeacherOutput) -> tuple[str, ...]:
        """Keep the blocks whose outputs have one shape on both sides; return their names.

        A block must run once on both sides and return a map. (A block that runs several times has
        no single output.)
        """
        present = set(dict(self.student.named_modules()))
        both = tuple(
            n for n in target.blocks if n in present and self._teacher_blocks.calls[n] == 1
        )
        self._student_blocks.names = both
        with torch.no_grad(), seeded(target.seed), self._student_blocks.recording():
            self.student(*target.args)
        mine = self._student_blocks.outputs
        self.blocks = tuple(
            n
            for n in both
            if self._student_blocks.calls.get(n) == 1
            and n in mine
            and mine[n].dim() == 4
            and mine[n].shape == target.blocks[n].shape
        )
        self._teacher_blocks.names = self._student_blocks.names = self.blocks
        return self.blocks

    @torch.no_grad()
    def scales(self, targets: Sequence[TeacherOutput]) -> Scales:
        """Measure the variances of the teacher's outputs over some batches."""
        return Scales(
            image=torch.cat([t.image for t in targets]).var().clamp_min(1e-12),
            blocks={n: _variance(torch.cat([t.blocks[n] for t in targets])) for n in self.blocks},
            maps=[_variance(torch.cat(m)) for m in zip(*(t.maps for t in targets), strict=True)],
        )

    def terms(
        self, target: TeacherOutput, image: Tensor, blocks: dict[str, Tensor], scales: Scales
    ) -> dict[str, Tensor]:
        """Return the normalised errors of the image, the blocks (mean) and the features (mean)."""
        found: dict[str, Tensor] = {"image": relative_error(image, target.image, scales.image)}
        if self.blocks:
            each = [
                relative_error(blocks[n], target.blocks[n], scales.blocks[n]) for n in self.blocks
            ]
            found["blocks"] = torch.stack(each).mean()
        if target.maps and self.features is not None:
            maps = self.features(image)
            pairs = zip(maps, target.maps, scales.maps, strict=True)
            found["features"] = torch.stack([relative_error(s, t, v) for s, t, v in pairs]).mean()
        return found


def weighted_loss(terms: dict[str, Tensor], config: DistillConfig) -> Tensor:
    """Return the sum of the terms with the weights of ``config``."""
    weights = {"image": config.image, "blocks": config.blocks, "features": config.features}
    return torch.stack([weights[n] * v for n, v in terms.items()]).sum()
