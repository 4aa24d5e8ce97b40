"""Plan and convert a whole file: every generator in it, by one plan."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from dsconvert.config.choices import Width
from dsconvert.config.convert import Fitting, Polishing, Rewriting
from dsconvert.core.analysis import Analysis, analyse, analyse_alike
from dsconvert.core.conversion import apply_to, check_inputs
from dsconvert.core.pipeline import costed_plan, plan_for
from dsconvert.core.polish import polish as polished
from dsconvert.core.polish_options import PolishOptions, check_polishable, polish_options
from dsconvert.formats.base import GeneratorFile
from dsconvert.model.inputs import device_of
from dsconvert.model.observe import undisturbed
from dsconvert.records import Conversion, Plan, PolishForecast
from dsconvert.util.progress import Progress, reports_progress


@dataclass(frozen=True, kw_only=True)
class FileConversion:
    """All converted generators of one file, by their key in it; the main one first."""

    conversions: dict[str, Conversion] = field(default_factory=dict)

    @property
    def main(self) -> tuple[str, Conversion]:
        """Name and conversion of the generator that makes the images."""
        return next(iter(self.conversions.items()))

    @property
    def models(self) -> dict[str, nn.Module]:
        """The converted generators, for :func:`dsconvert.save_file`."""
        return {key: c.model for key, c in self.conversions.items()}


@reports_progress
def plan_file(
    file: GeneratorFile,
    *,
    preset: str = Rewriting.preset,
    rank: int | None = None,
    width: Width | None = None,
    keep: Sequence[str] = (),
    refit: Sequence[str] = (),
    remove: Sequence[str] = (),
    plan: Plan | None = None,
    init: str = Fitting.init,
    calibrate: int | None = None,
    polished: bool = False,
    seed: int = Fitting.seed,
    progress: Progress | bool | None = None,
    device: torch.device | str | None = None,
) -> Plan:
    """Plan the conversion of a file's main generator; the plan serves the others as well.

    A ``plan`` of the caller's own is checked and costed anew, and the other options play no part.
    ``init``, ``calibrate``, ``seed`` and ``polished`` (whether there is to be a polish) are those
    of the conversion that follows; ``device`` is as for :func:`convert_file`.
    """
    inputs = file.inputs()
    if plan is not None:
        return costed_plan(file.generator, plan, inputs=inputs)
    with undisturbed():
        return plan_for(
            analyse(
                _placed(file.generator, device),
                inputs=inputs,
                adapter=file.adapter,
                progress=progress if callable(progress) else None,
            ),
            preset=preset,
            rank=rank,
            width=width,
            keep=keep,
            refit=refit,
            remove=remove,
            init=init,
            calibrate=calibrate,
            polished=polished,
            seed=seed,
            progress=progress if callable(progress) else None,
        )


@reports_progress
def convert_file(
    file: GeneratorFile,
    *,
    preset: str = Rewriting.preset,
    rank: int | None = None,
    width: Width | None = None,
    keep: Sequence[str] = (),
    refit: Sequence[str] = (),
    remove: Sequence[str] = (),
    plan: Plan | None = None,
    init: str = Fitting.init,
    calibrate: int | None = None,
    seed: int = Fitting.seed,
    polish: float = Polishing.polish,
    polish_steps: int | None = Polishing.polish_steps,
    forecast: Callable[[PolishForecast], None] | None = None,
    progress: Progress | bool | None = None,
    generators: Sequence[str] | None = None,
    device: torch.device | str | None = None,
    made: Mapping[str, Conversion] | None = None,
) -> FileConversion:
    """Convert every generator of a file by one plan, each with its own weights.

    The options are those of :func:`dsconvert.convert`.

    Args:
        file: an opened file.
        preset: see there.
        rank: see there.
        width: see there.
        keep: see there.
        refit: see there.
        remove: see there.
        plan: see there.
        init: see there.
        calibrate: see there.
        seed: see there.
        polish: see there; the first generator alone is polished, after all have been fitted.
        polish_steps: see there.
        forecast: called with the expectation of the polish before its first step.
        progress: see there; the stage's name begins with the generator's key.
        generators: keys of the generators to convert; None: all of them.
        device: where to fit and polish; the results are on the CPU. None: where the file's
            generators are, which is the CPU.
        made: conversions of some generators by ``plan``, which are not made again.
    """
    options = polish_options(polish, polish_steps, init=init, forecast=forecast)
    decided = plan
    conversions: dict[str, Conversion] = dict(made or {})
    digests: dict[bytes, str] = {}
    known: Analysis | None = None
    wanted = file.generators if generators is None else tuple(generators)
    for key in (k for k in wanted if k not in conversions):
        # Not ``file.generator``, which is kept: of a large file one original at a time is enough.
        model = _placed(file.module(key), device)
        # A fit takes minutes, its digest a second.
        if init == "fit" and calibrate != 0 and len(wanted) > 1:
            twin = digests.setdefault(_digest(model), key)
            if twin != key:
                conversions[key] = _again(conversions[twin], twin)
                continue

        began = time.perf_counter()
        with undisturbed():
            analysis = analyse_alike(
                known,
                model,
                inputs=file.inputs(model),
                adapter=file.adapter,
                owned=file.is_private(key),
                progress=_prefixed(progress, key),
            )
            check_inputs(analysis, init, calibrate)
            if options.wanted and not conversions:
                check_polishable(analysis)
            spent = {"trace": time.perf_counter() - began}
            # The graph serves the next generator, too; the weights need not stay for that.
            known = known or analysis.without_model()
            if decided is None:
                began = time.perf_counter()
                decided = plan_for(
                    analysis,
                    preset=preset,
                    rank=rank,
                    width=width,
                    keep=keep,
                    refit=refit,
                    remove=remove,
                    init=init,
                    calibrate=calibrate,
                    polished=options.wanted,
                    seed=seed,
                    progress=_prefixed(progress, key),
                )
                spent["plan"] = time.perf_counter() - began
            first = next(iter(conversions.values()), None)
            conversions[key] = apply_to(
                analysis,
                decided,
                init=init,
                calibrate=calibrate,
                seed=seed,
                progress=_prefixed(progress, key),
                costs=(first.before, first.after) if first else None,
                spent=spent,
                kept=first.kept if first else None,
            )
        del model, analysis
    if options.wanted and known is not None:
        _polish_first(
            file, conversions, known, options, seed=seed, progress=progress, device=device
        )
    if device is not None:
        for model in (*file.live.values(), *(c.model for c in conversions.values())):
            _placed(model, "cpu")
    return FileConversion(conversions=conversions)


def _placed(model: nn.Module, device: torch.device | str | None) -> nn.Module:
    """Return ``model``, moved to ``device`` if one is given and the model is elsewhere."""
    if device is None or device_of(model) == torch.device(device):
        return model
    return model.to(device)


def _prefixed(progress: Progress | bool | None, key: str) -> Progress:
    """Return a callback whose stages begin with the generator's key."""

    def report(stage: str, done: int, total: int, detail: str) -> None:
        if callable(progress):
            progress(f"{key}: {stage}", done, total, detail)

    return report


def _polish_first(
    file: GeneratorFile,
    conversions: dict[str, Conversion],
    known: Analysis,
    options: PolishOptions,
    *,
    seed: int,
    progress: Progress | bool | None,
    device: torch.device | str | None,
) -> None:
    """Polish the first of ``conversions``, in place; the others get a note."""
    main, *others = conversions
    with undisturbed():
        # Read anew: the original was not kept beside those of the other generators.
        model = _placed(file.module(main), device)
        analysis = analyse_alike(
            known, model, inputs=file.inputs(model), adapter=file.adapter, owned=False
        )
        conversions[main] = polished(
            analysis, conversions[main], options, seed=seed, progress=_prefixed(progress, main)
        )
    note = f"not polished: only {main} is, and the plan is the same"
    for key in others:
        made = conversions[key]
        conversions[key] = dataclasses.replace(made, undone=(*made.undone, note))


def _digest(model: nn.Module) -> bytes:
    """Return a digest of all weights and statistics: equal models need not be fitted twice."""
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
