"""A whole model fitted to its original: the teacher made ready, latents drawn, then one pass."""

from __future__ import annotations

import torch
from torch import nn

from dsconvert.fit.run import BATCH, Outcome, Progress, run
from dsconvert.model.copying import isolated_copy
from dsconvert.model.graph import ConvTypes
from dsconvert.model.inputs import Inputs, like
from dsconvert.model.norms import fold, norm_kind
from dsconvert.model.precision import as_stored
from dsconvert.model.trace import Traced
from dsconvert.records import Plan


def fit_to_original(
    student: nn.Module,
    model: nn.Module,
    traced: Traced,
    plan: Plan,
    residuals: dict[str, float],
    sampler: Inputs,
    *,
    latents: int,
    factors: bool,
    seed: int,
    progress: Progress | None,
) -> Outcome:
    """Fit ``student``, in place, to ``model``, which it was rewritten from by ``plan``.

    Args:
        student: the rewritten model.
        model: the original; left as it was.
        traced: its trace.
        plan: what was done.
        residuals: kernel energy lost by each rewrite, for the record.
        sampler: of the model's inputs.
        latents: how many samples, in batches of :data:`dsconvert.fit.run.BATCH`; two batches at
            least, of which one is held out.
        factors: fit the factors and refit kept convolutions; False: statistics only.
        seed: of the samples and every other draw.
        progress: called with ``(stage, done, total, detail)``.

    Raises:
        OutputError: a fitted weight overflows in the model's own type.
    """
    teacher = isolated_copy(model)
    for module in teacher.modules():
        if isinstance(module, ConvTypes) and norm_kind(module) != "none":
            fold(module)
    # Half precision is for running, not for normal equations.
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()}
    narrow = kinds not in ({torch.float32}, {torch.float64}, set())
    # A forward may keep what it computes on its module: not on the one that is handed back.
    working = isolated_copy(student, share_parameters=not narrow)
    if narrow:
        working.float()
        teacher.float()
    generator = torch.Generator().manual_seed(seed)
    batches = [
        like(sampler(BATCH, generator), teacher) for _ in range(max(2, -(-latents // BATCH)))
    ]
    outcome = run(
        recorded=traced.recorded,
        trace=traced.trace,
        plan=plan,
        teacher=teacher,
        student=working,
        batches=batches,
        residuals=residuals,
        factors=factors,
        seed=seed,
        progress=progress,
    )
    fitted = working.state_dict()
    if narrow:
        where = f"the converted {type(model).__name__}"
        fitted = as_stored(fitted, student.state_dict(), where)
    student.load_state_dict(fitted)
    return outcome
