"""Prepare teacher and student for a loop, and give the trained student its own form back."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dsconvert.config.distill import DistillConfig
from dsconvert.data.spectrograms import SpectrumMaps
from dsconvert.errors import UsageError
from dsconvert.matching.batches import TeacherBatches
from dsconvert.matching.blocks import trunk_blocks
from dsconvert.matching.loss import Objective, ProjectedMaps
from dsconvert.model.copying import isolated_copy, owned_copy
from dsconvert.model.inputs import Inputs
from dsconvert.projected.lite0 import Weights
from dsconvert.records import within
from dsconvert.util.memory_format import in_channels_last


def working_copy(student: nn.Module, *, frozen: Collection[str] = ()) -> nn.Module:
    """Return a float32 copy of ``student`` to train, with hooks of its own.

    Parameters without gradients stay as they are, unless all are without: a moving average is
    stored like that. So do the modules ``frozen``, and tensors that are no floating-point ones.
    """
    made = isolated_copy(student).float()
    stored = not any(p.requires_grad for p in made.parameters())
    for name, parameter in made.named_parameters():
        held = within(name.rpartition(".")[0], tuple(frozen))
        trained = (stored or parameter.requires_grad) and not held
        parameter.requires_grad_(trained and parameter.is_floating_point())
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


def as_given(trained: nn.Module, like: nn.Module) -> nn.Module:
    """Return a copy of ``like`` with the parameters and buffers of ``trained``, in plain layout.

    ``trained`` is the working copy. All else is as in ``like``: types, devices, modes, gradient
    flags, hooks, and the attributes that a forward pass stores on its module. So are tensors that
    did not change: those in float64 lost digits in the working copy.
    """
    memo: dict[int, Any] = {}
    for mine, theirs in zip(trained.parameters(), like.parameters(), strict=True):
        memo[id(theirs)] = nn.Parameter(_placed(mine, theirs), theirs.requires_grad)
    for mine, theirs in zip(trained.buffers(), like.buffers(), strict=True):
        memo[id(theirs)] = _placed(mine, theirs)
    return owned_copy(like, memo)


def _placed(tensor: Tensor, like: Tensor) -> Tensor:
    tensor, like = tensor.detach(), like.detach()
    if torch.equal(tensor, like.to(tensor.device, tensor.dtype)):
        return like.clone(memory_format=torch.contiguous_format)
    return tensor.to(like.device, like.dtype).contiguous()
