"""Fit a whole rewritten model to its original: prepare the teacher, draw latents, run the pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from dsconvert.core.fit_layers import BATCH, FitOutcome, fit_layers
from dsconvert.fit.statistics import buffers_of
from dsconvert.model.copying import copy_tensors, isolated_copy, tensors_by_name
from dsconvert.model.graph import ConvTypes, TracedGraph
from dsconvert.model.inputs import Inputs, held_out_inputs, like
from dsconvert.model.norms import fold, norm_kind
from dsconvert.model.precision import as_stored
from dsconvert.records import Plan, Sites, within
from dsconvert.util.progress import Progress
from dsconvert.width import Absorber, ChannelGroups, Kept


@dataclass(frozen=True, kw_only=False, eq=False)
class Narrower:
    """The widths of a narrower student.

    Attributes:
        groups: the channel groups of the original.
        kept: the channels that the student keeps, by group.
        graph: the student's operations.
    """

    groups: ChannelGroups
    kept: Kept
    graph: TracedGraph


def fit_to_original(
    student: nn.Module,
    model: nn.Module,
    sites: Sites,
    graph: TracedGraph,
    plan: Plan,
    residuals: dict[str, float],
    sampler: Inputs,
    *,
    latents: int,
    factors: bool,
    seed: int,
    progress: Progress | None,
    narrower: Narrower | None = None,
) -> FitOutcome:
    """Fit ``student``, in place, to ``model``, which it was rewritten from by ``plan``.

    Args:
        student: the rewritten model.
        model: the original; it does not change.
        sites: the model's convolutions.
        graph: the model's operations.
        plan: the plan that ``student`` was rewritten by.
        residuals: kernel energy lost by each rewrite, for the record.
        sampler: of the model's inputs.
        latents: number of samples, in batches of :data:`~dsconvert.core.fit_layers.BATCH`; at
            least two batches, of which one is held out.
        factors: fit the factors and refit kept convolutions; False: statistics only.
        seed: of the samples and every other draw.
        progress: called with ``(stage, done, total, detail)``.
        narrower: the widths of the student, if it has fewer channels.

    Raises:
        OutputError: a fitted weight overflows in the model's own type.
    """
    teacher = isolated_copy(model)
    for module in teacher.modules():
        if isinstance(module, ConvTypes) and norm_kind(module) != "none":
            fold(module)
    # Normal equations need more than half precision.
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()}
    narrow = kinds not in ({torch.float32}, {torch.float64}, set())
    # A forward may store values on its module, which must not appear on the result.
    working = isolated_copy(student, share_parameters=not narrow)
    if narrow:
        working.float()
        teacher.float()
    generator = torch.Generator().manual_seed(seed)
    count = max(2, -(-latents // BATCH))
    if not factors and narrower is None and not _has_statistics(student, plan):
        # Nothing is corrected: the pass only measures the errors, on the held-out batch.
        count = 2
    # The first batch is held out.
    samplers = [held_out_inputs(sampler), *[sampler] * (count - 1)]
    batches = [like(draw(BATCH, generator), teacher) for draw in samplers]
    outcome = fit_layers(
        graph=graph,
        sites=sites,
        plan=plan,
        teacher=teacher,
        student=working,
        batches=batches,
        residuals=residuals,
        factors=factors,
        seed=seed,
        progress=progress,
        absorber=None if narrower is None else Absorber(teacher, narrower.groups, narrower.kept),
        student_graph=None if narrower is None else narrower.graph,
    )
    fitted = tensors_by_name(working)
    if narrow:
        where = f"the converted {type(model).__name__}"
        fitted = as_stored(fitted, tensors_by_name(student), where)
    copy_tensors(fitted, student)
    return outcome


def _has_statistics(model: nn.Module, plan: Plan) -> bool:
    """Return whether ``model`` has statistics that the plan allows to correct."""
    return any(
        buffers_of(m) is not None and not within(name, plan.keep)
        for name, m in model.named_modules()
    )
