"""Prepare teacher and student for a loop, and give the trained student its own form back."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence

import torch
from torch import nn

from dsconvert.config.distill import DistillConfig
from dsconvert.data.spectrograms import SpectrumMaps
from dsconvert.errors import UsageError
from dsconvert.matching.batches import TeacherBatches
from dsconvert.matching.blocks import trunk_blocks
from dsconvert.matching.loss import Objective, ProjectedMaps
from dsconvert.model.editing import copied
from dsconvert.model.inputs import Inputs
from dsconvert.projected.lite0 import Weights
from dsconvert.records import within
from dsconvert.util.memory_format import in_channels_last


def working_copy(student: nn.Module, *, frozen: Collection[str] = ()) -> nn.Module:
    """Return a float32 copy of ``student`` to train; the modules ``frozen`` get no gradients."""
    made = copy.deepcopy(copied(student)).float().requires_grad_(True)
    for name, parameter in made.named_parameters():
        if within(name.rpartition(".")[0], tuple(frozen)):
            parameter.requires_grad_(False)
    return made


def teacher_batches(
    teacher: nn.Module,
    student: nn.Module,
    inputs: Inputs,
    *,
    config: DistillConfig,
    blocks: Sequence[str] | None = None,
    weights: Weights = "auto",
    sounds: bool = False,
    device: torch.device,
) -> TeacherBatches:
    """Put teacher and student on ``device``, in the fastest layout, and pair them.

    Args:
        teacher: a copy of the caller's own; it is changed.
        student: from :func:`working_copy`; it will be trained in place.
        inputs: ``inputs(n, generator)`` returns the arguments of a call with batch n.
        config: of the run.
        blocks: names of the modules whose outputs are compared; None: those that make the picture.
        weights: of the backbone.
        sounds: the outputs are sounds (N, 1, 1, T), whose features are their spectra.
        device: where to work.

    Raises:
        UsageError: a block is unknown, or the student does not fit the teacher.
        MissingExtraError: the backbone's weights are not installed.
    """
    nets: list[nn.Module] = [
        teacher.to(device).float().eval().requires_grad_(False),
        student.to(device),
    ]
    features: ProjectedMaps | SpectrumMaps | None = None
    if config.features:
        features = (
            SpectrumMaps()
            if sounds
            else ProjectedMaps(size=config.feature_size, weights=weights).to(device)
        )
        nets.append(features)
    if device.type == "cpu":
        # In this layout oneDNN takes two thirds of the time for these small, wide maps.
        for net in nets:
            in_channels_last(net)
    names = tuple(trunk_blocks(teacher) if blocks is None else blocks)
    unknown = [n for n in names if n not in dict(teacher.named_modules())]
    if unknown:
        raise UsageError(f"the teacher has no module called {', '.join(unknown)}.")
    objective = Objective(teacher, student, blocks=names, features=features)
    return TeacherBatches(objective, inputs, config)


def not_compared(batches: TeacherBatches, blocks: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return the names of ``blocks`` (None: those that make the picture) that are left out."""
    objective = batches.objective
    names = trunk_blocks(objective.teacher) if blocks is None else blocks
    return tuple(n for n in names if n not in objective.blocks)


def as_given(made: nn.Module, like: nn.Module) -> nn.Module:
    """Give ``made`` the dtypes, devices, modes and gradient flags of ``like``, in plain layout."""
    for mine, theirs in zip(made.parameters(), like.parameters(), strict=True):
        mine.data = mine.data.to(theirs.device, theirs.dtype).contiguous()
        mine.requires_grad_(theirs.requires_grad)
        mine.grad = None
    for mine, theirs in zip(made.buffers(), like.buffers(), strict=True):
        mine.data = mine.data.to(theirs.device, theirs.dtype).contiguous()
    for mine, theirs in zip(made.modules(), like.modules(), strict=True):
        mine.training = theirs.training
    return made
