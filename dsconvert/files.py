"""The pipeline on a whole file: every generator in it, by one plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from dsconvert.fit import Progress
from dsconvert.pipeline import apply, costed_plan
from dsconvert.pipeline import plan as plan_model
from dsconvert.records import Conversion, Plan
from dsconvert.snapshot import Snapshot


@dataclass(frozen=True, kw_only=True)
class SnapshotConversion:
    """All converted generators of one snapshot, by their key in the file."""

    conversions: dict[str, Conversion] = field(default_factory=dict)

    @property
    def models(self) -> dict[str, nn.Module]:
        """What :func:`dsconvert.snapshot.save_snapshot` takes."""
        return {key: c.model for key, c in self.conversions.items()}


def plan_snapshot(
    snap: Snapshot,
    *,
    preset: str = "balanced",
    rank: int | None = None,
    keep: Sequence[str] = (),
    plan: Plan | None = None,
) -> Plan:
    """The plan for a snapshot's generator (``G_ema``); it serves ``G`` as well.

    A ``plan`` of the caller's own is checked and costed anew, and the other options play no part.
    """
    if plan is not None:
        return costed_plan(snap.generator, plan)
    return plan_model(snap.generator, preset=preset, rank=rank, keep=keep)


def convert_snapshot(
    snap: Snapshot,
    *,
    preset: str = "balanced",
    rank: int | None = None,
    keep: Sequence[str] = (),
    plan: Plan | None = None,
    init: str = "fit",
    calibrate: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> SnapshotConversion:
    """Convert ``G_ema``, and ``G`` where the file has it: one plan, each its own weights."""
    decided = plan
    conversions: dict[str, Conversion] = {}
    for key in ("G_ema", "G"):
        if not snap.has_module(key):
            continue
        # Not ``snap.generator``, which is kept: of a large file one original at a time is enough.
        model = snap.module(key)
        decided = decided or plan_model(model, preset=preset, rank=rank, keep=keep)

        def report(stage: str, done: int, total: int, detail: str, key: str = key) -> None:
            if progress is not None:
                progress(f"{key}: {stage}", done, total, detail)

        first = next(iter(conversions.values()), None)
        conversions[key] = apply(
            model,
            decided,
            init=init,
            calibrate=calibrate,
            seed=seed,
            progress=report,
            costs=(first.before, first.after) if first else None,
        )
        del model
    return SnapshotConversion(conversions=conversions)
