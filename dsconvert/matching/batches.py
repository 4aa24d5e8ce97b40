"""The teacher's images of numbered batches: for training, for the scales, and held out.

A batch depends on the run's seed and its number alone. Each purpose has its own range of numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsconvert.config.distill import DistillConfig
from dsconvert.errors import UsageError
from dsconvert.matching.loss import Objective, Scales, TeacherOutput
from dsconvert.model.inputs import Inputs, held_out_inputs, tensors_of

HELD_OUT, SCALES, TRAINING = 0, 100_000, 1_000_000
"""The first number of each purpose."""
_NUMBERS = 4_000_037
"""Batch numbers of one seed; those of the next seed begin there."""
_FOR_SCALES = 48
"""Latents from which the scales are measured."""
_KEPT_BYTES = 512 * 2**20
"""Held-out batches are kept up to this size, all together; the others are made again."""


class TeacherBatches:
    """The batches of one run.

    Args:
        objective: teacher and student.
        inputs: ``inputs(n, generator)`` returns the arguments of a call with batch n.
        config: of the run.

    Raises:
        UsageError: the images of teacher and student differ in size, or they have nothing that
            can be compared.
    """

    def __init__(self, objective: Objective, inputs: Inputs, config: DistillConfig) -> None:
        self.objective, self.inputs, self.config = objective, inputs, config
        self.device = next(objective.student.parameters()).device
        self._judges: dict[int, TeacherOutput] = {}
        self._room = _KEPT_BYTES
        self._shared: tuple[tuple[int, bool], TeacherOutput] | None = None
        self._check_student()

    def target(self, number: int, *, maps: bool = True) -> TeacherOutput:
        """Return the teacher's side of batch ``number``, with the backbone's maps if ``maps``."""
        seed = self.config.seed * _NUMBERS + number
        inputs = held_out_inputs(self.inputs) if number < SCALES else self.inputs
        args = inputs(self.config.batch, torch.Generator().manual_seed(seed))
        placed = tuple(
            (a.to(self.device, torch.float32) if a.is_floating_point() else a.to(self.device))
            if isinstance(a, Tensor)
            else a
            for a in args
        )
        return self.objective.run_teacher(placed, seed, maps=maps)

    def held_out(self, index: int) -> TeacherOutput:
        """Return one of the batches that judge the student."""
        if index in self._judges:
            return self._judges[index]
        target = self.target(HELD_OUT + index)
        size = _bytes_of(target)
        if size <= self._room:
            self._room -= size
            self._judges[index] = target
        return target

    def training(self, step: int, *, maps: bool = True) -> TeacherOutput:
        """Return the batch of a training step; ``config.share`` steps in a row share one.

        The teacher takes about half the time of a step. With shared batches a step learns as much
        (emoji-64-ngf32: SHARED).
        """
        key = step // self.config.share, maps
        if self._shared is not None and self._shared[0] == key:
            return self._shared[1]
        self._shared = None  # its memory is needed for the next one
        target = self.target(TRAINING + key[0], maps=maps)
        if self.config.share > 1:
            self._shared = key, target
        return target

    def _check_student(self) -> None:
        """Find the blocks that teacher and student share; refuse a student that does not fit."""
        target = self.target(SCALES)
        self.objective.student.eval()
        names = self.objective.keep_shared_blocks(target)
        with torch.no_grad():
            image, _ = self.objective.run_student(self.target(SCALES))
        if image.shape != target.image.shape:
            raise UsageError(
                f"the student's images are {list(image.shape[1:])}, the teacher's "
                f"{list(target.image.shape[1:])}: one can't learn from the other."
            )
        c = self.config
        if not (c.image or c.features or (c.blocks and names)):
            raise UsageError(
                "only blocks were to be compared, and teacher and student share none: give image "
                "or features a weight."
            )
        if c.blockwise and not self.objective.alone:
            raise UsageError(
                "teacher and student share no block with the same inputs and outputs: there is no "
                "blockwise stage."
            )

    def scales(self) -> Scales:
        """Measure the variances that squared errors are divided by; solve the read-outs."""
        count = max(2, -(-_FOR_SCALES // self.config.batch))
        targets = [self.target(SCALES + i) for i in range(count)]
        self.objective.begin_readouts(targets)
        return self.objective.scales(targets)


def _bytes_of(target: TeacherOutput) -> int:
    """Return the memory of a batch; the input of a block is the output of the one before."""
    tensors = [target.image, *target.maps, *target.blocks.values()]
    tensors += [t for args in target.inputs.values() for t in tensors_of(args)]
    stored = {t.data_ptr(): t.numel() * t.element_size() for t in tensors}
    return sum(stored.values())
