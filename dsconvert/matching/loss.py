"""The distance of a student to its teacher: blocks, image, projected features.

Every term is ``E[(s - t)^2] / var(t)``. Dividing by the teacher's variance, channel by channel,
makes channels of small and large values equally important, and the terms comparable. FitNets
(Romero et al. 2015) matched hidden maps; Johnson et al. 2016 compare the maps of a frozen backbone,
here those of a Projected GAN's discriminator (Sauer et al. 2021). A block whose map has other
channels than the teacher's is compared through a :class:`~dsconvert.matching.readout.ReadOut`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsconvert.config.distill import DistillConfig
from dsconvert.data.spectrograms import SpectrumMaps
from dsconvert.matching.blocks import Args, BlockRecorder
from dsconvert.matching.outputs import Outputs, StudentOutput, outputs_of
from dsconvert.matching.readout import ReadOut
from dsconvert.model.inputs import map_tensors, tensors_of
from dsconvert.projected.lite0 import Weights, three_channels
from dsconvert.projected.projector import Projector

FLOOR = 1e-3
"""The least variance of a channel, as a share of the mean variance."""


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

    def error(self, made: Tensor, wanted: Tensor, scale: Tensor) -> Tensor:
        """Return :func:`relative_error`."""
        return relative_error(made, wanted, scale)


@dataclass(frozen=True, kw_only=True)
class TeacherOutput(Outputs):
    """The teacher's outputs for one batch, and its arguments and seed."""

    args: Args
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
    others: tuple[Tensor, ...] = ()

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return dict(vars(self))

    def to(self, device: torch.device) -> Scales:
        """Return the same on ``device``: checkpoints are read to the CPU."""
        return Scales(**map_tensors(lambda t: t.to(device), self.state()))


def _variance(values: Tensor) -> Tensor:
    variance = values.var((0, 2, 3), keepdim=True)
    return variance.clamp_min(FLOOR * float(variance.mean()) + 1e-12)


def _spread(values: Tensor) -> Tensor:
    return values.var().clamp_min(FLOOR * float(values.square().mean()) + 1e-12)


def relative_error(student: Tensor, teacher: Tensor, scale: Tensor) -> Tensor:
    """Return ``mean((s - t)^2 / var(t))``."""
    return ((student - teacher).square() / scale).mean()


class Objective:
    """Runs teacher and student on shared latents and noise, and compares them.

    Args:
        teacher: in eval mode, without gradients.
        student: any module that takes the teacher's arguments and makes images of its size.
        blocks: names of modules to compare; :meth:`keep_shared_blocks` drops some.
        features: makes maps of an image (the backbone, or spectra of a sound); None: none are
            compared.

    Attributes:
        blocks: the compared blocks.
        readouts: of those whose map has other channels than the teacher's.
        alone: the blocks that can be given the teacher's inputs.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        *,
        blocks: Sequence[str],
        features: ProjectedMaps | SpectrumMaps | None,
    ) -> None:
        self.teacher, self.student, self.features = teacher, student, features
        self._teacher_blocks = BlockRecorder(teacher, tuple(blocks))
        self._student_blocks = BlockRecorder(student, tuple(blocks))
        self.blocks = tuple(blocks)
        self.readouts: dict[str, ReadOut] = {}
        self.alone = self.blocks

    @torch.no_grad()
    def run_teacher(self, args: Args, seed: int, *, maps: bool = True) -> TeacherOutput:
        """Run the teacher on one batch; ``maps``: with the maps of the backbone."""
        made = self._teacher_blocks.record(lambda: outputs_of(self.teacher, args, seed))
        return TeacherOutput(
            **vars(made),
            args=args,
            blocks=dict(self._teacher_blocks.outputs),
            inputs=dict(self._teacher_blocks.inputs),
            maps=self.features(made.image) if self.features is not None and maps else [],
            seed=seed,
        )

    def run_student(self, target: TeacherOutput, *, blockwise: bool = False) -> StudentOutput:
        """Run the student on the batch of ``target``.

        Args:
            target: the teacher's outputs; the student gets the same latents and noise.
            blockwise: give each block of :attr:`alone` the teacher's input instead of the previous
                block's output, and return the outputs of these blocks only.
        """
        replaced = {n: target.inputs[n] for n in self.alone} if blockwise else None
        self._student_blocks.replace = replaced
        made = self._run_student(target)
        blocks = dict(self._student_blocks.outputs)
        if replaced is not None:
            blocks = {n: blocks[n] for n in replaced}
        return StudentOutput(**vars(made), blocks=blocks)

    def _run_student(self, target: TeacherOutput) -> Outputs:
        return self._student_blocks.record(
            lambda: outputs_of(self.student, target.args, target.seed)
        )

    def keep_shared_blocks(self, target: TeacherOutput) -> tuple[str, ...]:
        """Keep the blocks that can be compared; return their names.

        A block must run once on both sides and return a map, of one size on both sides. (A block
        that runs several times has no single output.) If the maps differ in their channels, it gets
        a read-out.
        """
        present = set(dict(self.student.named_modules()))
        both = tuple(
            n for n in target.blocks if n in present and self._teacher_blocks.calls[n] == 1
        )
        self._student_blocks.names, self._student_blocks.replace = both, None
        with torch.no_grad():
            self._run_student(target)
        mine = self._student_blocks.outputs
        self.blocks = tuple(
            n
            for n in both
            if self._student_blocks.calls.get(n) == 1
            and n in mine
            and mine[n].dim() == 4
            and _without_channels(mine[n]) == _without_channels(target.blocks[n])
        )
        self.readouts = {
            n: ReadOut(mine[n].shape[1], target.blocks[n].shape[1], mine[n].device)
            for n in self.blocks
            if mine[n].shape != target.blocks[n].shape
        }
        inputs = self._student_blocks.inputs
        self.alone = tuple(
            n
            for n in self.blocks
            if n not in self.readouts and _shapes(inputs[n]) == _shapes(target.inputs[n])
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
            others=tuple(
                _spread(torch.cat(o)) for o in zip(*(t.others for t in targets), strict=True)
            ),
        )

    @torch.no_grad()
    def begin_readouts(self, targets: Sequence[TeacherOutput]) -> None:
        """Solve all read-outs for the present student on some batches."""
        for target in targets if self.readouts else ():
            self.follow(target, self.run_student(target).blocks)
        self.solve_readouts()

    def follow(self, target: TeacherOutput, blocks: dict[str, Tensor]) -> None:
        """Let the read-outs take a batch into account that the student has run on."""
        for name, readout in self.readouts.items():
            if name in blocks:
                readout.follow(blocks[name], target.blocks[name])

    def solve_readouts(self) -> None:
        """Solve for the matrices of all read-outs from the batches so far."""
        for readout in self.readouts.values():
            readout.solve()

    def readouts_state(self) -> dict[str, Any]:
        """Return the state of the read-outs for a checkpoint."""
        return {name: readout.state() for name, readout in self.readouts.items()}

    def restore_readouts(self, state: Mapping[str, Any]) -> None:
        """Load the state of :meth:`readouts_state`.

        A block without one (older versions had no read-outs) is no longer compared.
        """
        self.blocks = tuple(n for n in self.blocks if n not in self.readouts or n in state)
        self.readouts = {n: r for n, r in self.readouts.items() if n in state}
        for name, readout in self.readouts.items():
            readout.restore(state[name])

    def terms(
        self, target: TeacherOutput, made: StudentOutput, scales: Scales
    ) -> dict[str, Tensor]:
        """Return the normalised errors: of the image; means over other outputs, blocks, features.

        Other outputs are compared if both sides return as many; each if its shapes are equal.
        """
        found = {"image": relative_error(made.image, target.image, scales.image)}
        if len(made.others) == len(target.others):
            both = zip(made.others, target.others, scales.others, strict=False)
            if same := [relative_error(*each) for each in both if each[0].shape == each[1].shape]:
                found["others"] = torch.stack(same).mean()
        blocks = made.blocks
        each = [self._block_error(n, target, blocks[n], scales) for n in self.blocks if n in blocks]
        if each:
            found["blocks"] = torch.stack(each).mean()
        if target.maps and self.features is not None:
            maps = self.features(made.image)
            pairs = zip(maps, target.maps, scales.maps, strict=True)
            found["features"] = torch.stack([self.features.error(*p) for p in pairs]).mean()
        return found

    def _block_error(
        self, name: str, target: TeacherOutput, made: Tensor, scales: Scales
    ) -> Tensor:
        if name in self.readouts:
            made = self.readouts[name](made)
        return relative_error(made, target.blocks[name], scales.blocks[name])


def _without_channels(value: Tensor) -> tuple[int, ...]:
    """Return the shape of a map without its channels."""
    return (value.shape[0], *value.shape[2:])


def _shapes(args: Args) -> list[tuple[int, ...]]:
    return [tuple(t.shape) for t in tensors_of(args)]


def _weight(term: str, config: DistillConfig) -> float:
    return config.image if term == "others" else getattr(config, term)


def weighted_loss(terms: dict[str, Tensor], config: DistillConfig) -> Tensor:
    """Return the sum of the terms with the weights of ``config``."""
    return torch.stack([_weight(n, config) * v for n, v in terms.items()]).sum()


def weighted_sum(terms: dict[str, float], config: DistillConfig) -> float:
    """Return the same sum of plain numbers."""
    return sum(_weight(n, config) * v for n, v in terms.items())
