"""``convert --quality``: search for the fastest plan that holds a promise; show what came out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from dsconvert.bench import settle
from dsconvert.cli.measuring import judge_of, lite_features
from dsconvert.cli.output import Bars, say, say_whole
from dsconvert.config.convert import ConvertJob, Polishing
from dsconvert.core.analysis import analyse
from dsconvert.core.polish_options import polish_options
from dsconvert.errors import MissedTargetError, UsageError
from dsconvert.formats.base import GeneratorFile
from dsconvert.metrics.features import LiteFeatures
from dsconvert.metrics.quality import SAMPLES, SEEDS
from dsconvert.model.inputs import RandomPixels, needs_pictures_to_fit
from dsconvert.report.layout import compact
from dsconvert.search import Clock, MachineClock, Promise
from dsconvert.search.layer_trials import layer_trials
from dsconvert.search.profile import conditions
from dsconvert.search.promise import Found, PromiseSearch
from dsconvert.search.promise_candidates import Work, candidates, overrun, time_again
from dsconvert.search.quality_targets import QualityTarget, parse_qualities, worst
from dsconvert.search.records import Probe, Target
from dsconvert.search.targets import parse_targets
from dsconvert.search.tries import Try, TryStore, digest_of
from dsconvert.search.units import figure
from dsconvert.search.verify import Figure, missed, promises_of
from dsconvert.util.numbers import counted

_FREE = Target(metric="latency", ratio=1e6)
"""A target that always holds: the latency is measured to be shown."""
_REMEDY = "Nothing was written; --best-effort writes the nearest all the same."


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A result with the promises that were checked on it."""

    found: Found
    qualities: tuple[QualityTarget, ...]
    promises: tuple[Promise, ...]
    folder: str
    measured_with: dict[str, Any]

    @property
    def missed(self) -> str | None:
        """The reason if a promise is not held; None: all are."""
        return self.found.missed or missed(self.promises)


def check(options: ConvertJob) -> None:
    """Read the promises before any work.

    Raises:
        TargetError: one is malformed.
        MissingExtraError: the weights of FD-lite0 are not installed.
    """
    if not options.targets.quality:
        return
    qualities = parse_qualities(options.targets.quality)
    if options.targets.target:
        parse_targets(options.targets.target)
    if any(q.metric == "fd" for q in qualities):
        LiteFeatures()


def kept(
    file: GeneratorFile,
    options: ConvertJob,
    polishing: Polishing,
    bars: Bars,
    *,
    device: torch.device,
    clock: Clock | None = None,
) -> Kept:
    """Return the fastest conversion that holds the promises.

    Raises:
        MissedTargetError: there is none, and ``--best-effort`` was not given.
        UsageError: the generator can't be run.
    """
    targets, fitting = options.targets, options.fitting
    inputs = file.inputs()
    if inputs is None:
        raise UsageError(
            f"--quality runs the generator, and nothing says what the inputs of {file.path} look "
            "like; add --input SHAPE (say, --input 256)."
        )
    if isinstance(inputs, RandomPixels):
        raise UsageError(needs_pictures_to_fit(file.generator, inputs))
    qualities = parse_qualities(targets.quality)
    wanted = parse_targets(targets.target) if targets.target else ()
    settings = settle(dataclasses.replace(targets.measuring, device=str(device)))
    metrics = tuple(dict.fromkeys(("latency", *(t.metric for t in wanted))))
    probe = Probe(
        metrics=metrics, batch=targets.batch, train_batch=targets.train_batch,
        channels_last=targets.channels_last, settings=settings, repeats=5,
    )  # fmt: skip
    features = lite_features(device)
    samples = options.measure or SAMPLES
    judges = {
        use: judge_of(file, samples=samples, device=device, seed=SEEDS[use], features=features)
        for use in ("search", "promise")
    }
    key = file.generators[0]
    model = file.module(key).to(device)
    work = Work(
        analysis=analyse(model, inputs=file.inputs(model), adapter=file.adapter),
        inputs=inputs,
        qualities=qualities,
        targets=wanted,
        probe=probe,
        clock=clock or MachineClock(),
        polishing=polish_options(polishing.polish, polishing.polish_steps, init="fit"),
        picture=file.picture,
        search=judges["search"],
        promise=judges["promise"],
        keep=options.rewriting.keep,
        refit=options.rewriting.refit,
        remove=options.rewriting.remove,
        calibrate=fitting.calibrate,
        seed=fitting.seed,
    )
    facts = {
        "batch": targets.batch, "train_batch": targets.train_batch, "metrics": metrics,
        "channels_last": targets.channels_last, **dataclasses.asdict(settings),
    }  # fmt: skip
    named = {
        **facts, "keep": work.keep, "refit": work.refit, "remove": work.remove, "samples": samples,
        "calibrate": work.calibrate, "seed": work.seed, **polishing.to_dict(),
        "source": options.source.to_dict(), "pictures": options.pictures.to_dict(),
    }  # fmt: skip
    store = TryStore(digest_of(file.path, named), conditions=conditions(settings))
    tries = [] if targets.remeasure else store.load()
    if not tries:
        tries = candidates(
            work,
            lambda: layer_trials(
                work.analysis, picture=file.picture, features=None, seed=work.seed, progress=bars
            ),
            bars,
        )  # fmt: skip
        store.save(tries)
    elif not all(t.figures for t in tries):
        time_again(work, tries, bars)
        store.save(tries)
    searching = PromiseSearch(work, store, tries, bars)
    found = searching.run()
    if found is None:
        raise MissedTargetError(f"{_out_of_reach(work, tries)} {_REMEDY}")
    bars("measure the result", 0, 1)
    promises = promises_of(
        wanted or (_FREE,), work.analysis.model, found.conversion.model,
        inputs=inputs, probe=probe, clock=work.clock, adapter=work.analysis.adapter,
        before=found.chosen.before, promised=found.chosen.figures,
    )  # fmt: skip
    result = Kept(
        found=found, qualities=qualities, promises=promises if wanted else (),
        folder=str(store.folder), measured_with=facts,
    )  # fmt: skip
    if not wanted:
        result = dataclasses.replace(result, found=_retimed(found, promises[0]))
    if result.missed is not None and not targets.best_effort:
        raise MissedTargetError(f"{result.missed} {_REMEDY}")
    model.to("cpu")
    found.conversion.model.to("cpu")
    return result


def _retimed(found: Found, promise: Promise) -> Found:
    """Return the result with the latency that was measured on the finished model."""
    one = found.chosen
    before, figures = dict(one.before), dict(one.figures)
    before["latency"] = Figure(promise.before)
    figures["latency"] = Figure(promise.measured or promise.promised)
    return dataclasses.replace(
        found, chosen=dataclasses.replace(one, before=before, figures=figures)
    )


def _out_of_reach(work: Work, tries: list[Try]) -> str:
    metric = work.probe.metrics[0]
    asked = ", ".join(t.text for t in (*work.targets, *work.qualities))
    near = min(tries, key=lambda t: (overrun(work, t), t.figures[metric].value))
    shown = ", ".join(
        f"{m}={near.figures[m].value / near.before[m].value:.3g}x" for m in work.probe.metrics
    )
    return (
        f"{asked} can't be promised: no plan that was timed is within the targets and faster than "
        f"the original; the nearest is {near.name}, with {shown}."
    )


def as_dict(result: Kept) -> dict[str, Any]:
    """For ``--json``."""
    chosen = result.found.chosen
    quality = chosen.promised
    return {
        "promises": [
            {
                "quality": q.text,
                "search": None if chosen.quality is None else q.value(chosen.quality),
                "measured": None if quality is None else q.value(quality),
                "interval": None
                if quality is None
                else quality.ratio_interval if q.metric == "fd" else quality.psnr_interval,
                "met": quality is not None and worst([q], quality) <= 1,
            }
            for q in result.qualities
        ],
        "targets": [
            {"target": p.target.text, "original": p.before, "budget": p.budget,
             "promised": p.promised, "measured": p.measured, "met": p.met}
            for p in result.promises
        ],
        "missed": result.missed,
        "tries": [
            {
                "name": t.name,
                "predicted_loss": t.loss,
                "figures": {m: f.value for m, f in t.figures.items()},
                "original": {m: f.value for m, f in t.before.items()},
                "quality": None if t.quality is None else dataclasses.asdict(t.quality),
                "promised": None if t.promised is None else dataclasses.asdict(t.promised),
                "seconds": t.seconds,
            }
            for t in result.found.tries
        ],
        "chosen": chosen.name,
        "reused": result.found.reused,
        "folder": result.folder,
        "measured_with": result.measured_with,
    }  # fmt: skip


def show(result: Kept) -> None:
    """A table of the promises, and one of the tries."""
    chosen, metric = result.found.chosen, "latency"
    table = compact("promised", [], ["in the search", "on unseen latents", ""])
    for q in result.qualities:
        found = [None, None] if chosen.quality is None else [chosen.quality, chosen.promised]
        cells = ["" if x is None else q.shown(x) for x in found]
        met = chosen.promised is not None and worst([q], chosen.promised) <= 1
        table.add_row(q.text, *cells, "kept" if met else "missed")
    for p in result.promises:
        value = p.promised if p.measured is None else p.measured
        table.add_row(
            p.target.text, f"{p.promised / p.before:.3g}x", f"{value / p.before:.3g}x",
            "kept" if p.met else "missed",
        )  # fmt: skip
    say(table)
    samples = 0 if chosen.promised is None else chosen.promised.samples
    say(
        f"{chosen.name}: {figure(metric, chosen.figures[metric].value)} of "
        f"{figure(metric, chosen.before[metric].value)}; {counted(samples, 'image')} a side"
    )
    tries = compact("tries, the fastest first", [], ["latency", "predicted loss", "measured"])
    for t in result.found.tries:
        share = t.figures[metric].value / t.before[metric].value
        shown = "" if t.quality is None else ", ".join(q.shown(t.quality) for q in result.qualities)
        tries.add_row(t.name, f"{share:.3g}x", f"{t.loss:.3g}", shown or "not tried")
    say(tries)
    reused = f"; {result.found.reused} of an earlier run were used" if result.found.reused else ""
    say_whole(f"tries are kept in {result.folder}{reused}")
