"""The teacher's images of numbered batches: for training, for the scales, and held out.

A batch depends on the run's seed and its number alone. Each purpose has its own range of numbers.
"""

from __future__ import annotations

import torch

from dsconvert.config.distill import DistillConfig
from dsconvert.errors import UsageError
from dsconvert.matching.loss import Objective, Scales, TeacherOutput
from dsconvert.model.inputs import Inputs, held_out_inputs, like, tensors_of

HELD_OUT, SCALES, TRAINING = 0, 100_000, 1_000_000
"""The first number of each purpose."""
_NUMBERS = 4_000_037
"""Batch numbers of one seed; those of the next seed begin there."""
_FOR_SCALES = 48
"""Latents from which the scales are measured; fewer where few are held out, too."""
_KEPT_BYTES = 512 * 2**20
"""Held-out batches are kept up to this size, all together; the others are made again. The same goes
for training batches that are used twice."""
LAG = 9
"""Steps between the two uses of a batch, an odd number. (Used twice or three times in a row, a
batch teaches less: emoji-64-ngf32 at half width, 166 steps, every batch new: 31.8 dB; used twice, 9
steps apart: 31.7 dB; three times in a row: 30.6 dB.)"""


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
        self._reusable = False
        self._again: dict[int, tuple[bool, TeacherOutput]] = {}
        self._check_student()

    def target(self, number: int, *, maps: bool = True) -> TeacherOutput:
        """Return the teacher's side of batch ``number``, with the backbone's maps if ``maps``."""
        seed = self.config.seed * _NUMBERS + number
        inputs = held_out_inputs(self.inputs) if number < SCALES else self.inputs
        sample = inputs(self.config.batch, torch.Generator().manual_seed(seed))
        args = like(sample, self.objective.student)
        return self.objective.run_teacher(args, seed, maps=maps)

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
        """Return the batch of a training step.

        With ``config.reuse``, every second step uses the batch of :data:`LAG` steps before: the
        teacher takes about half the time of a step. Batches that do not fit into the memory for
        them are all new.
        """
        first = step - LAG
        if self._reusable and step % 2 and first >= 0:
            with_maps, kept = self._again.pop(first, (maps, None))
            if kept is not None and with_maps == maps:
                return kept
            return self.target(TRAINING + first, maps=maps)
        target = self.target(TRAINING + step, maps=maps)
        if self._reusable and step % 2 == 0:
            self._again[step] = maps, target
        return target

    def _check_student(self) -> None:
        """Find the blocks that teacher and student share; refuse a student that does not fit."""
        target = self.target(SCALES)
        self.objective.student.eval()
        names = self.objective.keep_shared_blocks(target)
        with torch.no_grad():
            target = self.target(SCALES)  # with the blocks that are compared
            image = self.objective.run_student(target).image
        if image.shape != target.image.shape:
            raise UsageError(
                f"the student's images are {list(image.shape[1:])}, the teacher's "
                f"{list(target.image.shape[1:])}: one can't learn from the other."
            )
        c = self.config
        self._reusable = c.reuse and _bytes_of(target) * (LAG + 1) // 2 <= _KEPT_BYTES
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
        latents = min(_FOR_SCALES, 3 * self.config.held_out // 2)
        count = max(2, -(-latents // self.config.batch))
        targets = [self.target(SCALES + i) for i in range(count)]
        self.objective.begin_readouts(targets)
        return self.objective.scales(targets)


def _bytes_of(target: TeacherOutput) -> int:
    """Return the memory of a batch; the input of a block is the output of the one before."""
    tensors = [target.image, *target.others, *target.maps, *target.blocks.values()]
    tensors += [t for args in target.inputs.values() for t in tensors_of(args)]
    stored = {t.data_ptr(): t.numel() * t.element_size() for t in tensors}
    return sum(stored.values())
