"""The cost of a whole generator at each rank, from plans alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from dsconvert.adapter import Adapter
from dsconvert.core.analysis import analyse
from dsconvert.core.pipeline import plan_for
from dsconvert.model.inputs import Inputs
from dsconvert.model.observe import undisturbed


@dataclass(frozen=True, kw_only=True)
class RankCost:
    """The cost of the whole model at one rank; ``macs`` are for one sample."""

    rank: int
    params: int
    macs: int | None
    rewritten: int
    """Convolutions that are rewritten; the others would not get cheaper at this rank."""


def rank_costs(
    model: nn.Module,
    ranks: Sequence[int],
    *,
    preset: str = "fast",
    inputs: Inputs | None = None,
    adapter: Adapter | None = None,
) -> tuple[RankCost, ...]:
    """Return the cost of ``model`` at each rank, from plans alone: no weight is read.

    Args:
        model: any module that :func:`dsconvert.plan` takes.
        ranks: whole numbers of 1 and more.
        preset: one that takes a rank.
        inputs: as for :func:`dsconvert.plan`.
        adapter: as for :func:`dsconvert.plan`.

    Raises:
        DsconvertError: as :func:`dsconvert.plan`.
    """
    with undisturbed():
        analysis = analyse(model, inputs=inputs, adapter=adapter)
        whole = analysis.cost
    rows: list[RankCost] = []
    for rank in ranks:
        decisions = plan_for(analysis, preset=preset, rank=rank, width=1.0).decisions
        macs = whole.macs
        for d in decisions:
            if macs is not None and d.macs_before is not None and d.macs_after is not None:
                macs += d.macs_after - d.macs_before
        rows.append(
            RankCost(
                rank=rank,
                params=whole.params + sum(d.params_after - d.params_before for d in decisions),
                macs=macs,
                rewritten=sum(d.action == "rewrite" for d in decisions),
            )
        )
    return tuple(rows)
