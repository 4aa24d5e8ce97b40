"""The pipeline on a whole file: every generator in it, by one plan."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from dsconvert.core.analysis import Analysis, analyse_alike
from dsconvert.core.conversion import apply_to
from dsconvert.core.pipeline import costed_plan, plan_for
from dsconvert.core.pipeline import plan as plan_model
from dsconvert.formats.checkpoint import Checkpoint
from dsconvert.formats.official import Snapshot
from dsconvert.formats.registry import Opened, inputs_of
from dsconvert.model.observe import undisturbed
from dsconvert.records import Conversion, Plan
from dsconvert.util.progress import Progress, reports_progress


@dataclass(frozen=True, kw_only=True)
class SnapshotConversion:
    """All converted generators of one file, by their key in it; the one for images first."""

    conversions: dict[str, Conversion] = field(default_factory=dict)

    @property
    def main(self) -> tuple[str, Conversion]:
        """Name and conversion of the generator that makes the images."""
        return next(iter(self.conversions.items()))

    @property
    def models(self) -> dict[str, nn.Module]:
        """What :func:`dsconvert.formats.registry.save_file` takes."""
        return {key: c.model for key, c in self.conversions.items()}


def plan_snapshot(
    snap: Opened,
    *,
    preset: str = "balanced",
    rank: int | None = None,
    keep: Sequence[str] = (),
    refit: Sequence[str] = (),
    remove: Sequence[str] = (),
    plan: Plan | None = None,
) -> Plan:
    """The plan for a file's main generator (``G_ema``); it serves the others as well.

    A ``plan`` of the caller's own is checked and costed anew, and the other options play no part.
    """
    inputs = inputs_of(snap)
    if plan is not None:
        return costed_plan(snap.generator, plan, inputs=inputs)
    return plan_model(
        snap.generator,
        preset=preset,
        rank=rank,
        keep=keep,
        refit=refit,
        remove=remove,
        inputs=inputs,
    )


@reports_progress
def convert_snapshot(
    snap: Opened,
    *,
    preset: str = "balanced",
    rank: int | None = None,
    keep: Sequence[str] = (),
    refit: Sequence[str] = (),
    remove: Sequence[str] = (),
    plan: Plan | None = None,
    init: str = "fit",
    calibrate: int | None = None,
    seed: int = 0,
    progress: Progress | bool | None = None,
    generators: Sequence[str] | None = None,
) -> SnapshotConversion:
    """Convert every generator of a file (``G_ema``, ``G``): one plan, each its own weights.

    ``generators`` names those that are wanted; None: all of them.
    """
    decided = plan
    conversions: dict[str, Conversion] = {}
    digests: dict[bytes, str] = {}
    # Of an official file the adapter is found by the model, one original at a time.
    inputs = inputs_of(snap) if isinstance(snap, Checkpoint) else None
    known: Analysis | None = None
    wanted = snap.generators if generators is None else tuple(generators)
    for key in wanted:
        # Not ``snap.generator``, which is kept: of a large file one original at a time is enough.
        model = snap.module(key)
        # A fit takes minutes, its digest a second.
        if init == "fit" and calibrate != 0 and len(wanted) > 1:
            twin = digests.setdefault(_digest(model), key)
            if twin != key:
                conversions[key] = _again(conversions[twin], twin)
                continue

        def report(stage: str, done: int, total: int, detail: str, key: str = key) -> None:
            if callable(progress):
                progress(f"{key}: {stage}", done, total, detail)

        began = time.perf_counter()
        owned = isinstance(snap, Snapshot) and key not in snap.live
        with undisturbed():
            analysis = analyse_alike(known, model, inputs=inputs, owned=owned)
            traced = time.perf_counter() - began
            # The graph serves the next generator, too; the weights need not stay for that.
            known = known or analysis.without_model()
            decided = decided or plan_for(
                analysis, preset=preset, rank=rank, keep=keep, refit=refit, remove=remove
            )
            first = next(iter(conversions.values()), None)
            conversions[key] = apply_to(
                analysis,
                decided,
                init=init,
                calibrate=calibrate,
                seed=seed,
                progress=report,
                costs=(first.before, first.after) if first else None,
                traced=traced,
            )
        del model, analysis
    return SnapshotConversion(conversions=conversions)


def _digest(model: nn.Module) -> bytes:
    """Of all weights and statistics: equal ones need not be fitted twice."""
    digest = hashlib.blake2b(digest_size=32)
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else b"")
    return digest.digest()


def _again(conversion: Conversion, twin: str) -> Conversion:
    return dataclasses.replace(
        conversion,
        model=copy.deepcopy(conversion.model),
        notes=(*conversion.notes, f"the same weights as {twin}: fitted once"),
        seconds={},
    )
