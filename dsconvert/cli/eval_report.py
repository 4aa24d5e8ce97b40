"""The result of ``eval`` as tables, sentences and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from dsconvert.config.measure import EvalJob
from dsconvert.metrics.draws import OverDraws, over_draws
from dsconvert.metrics.evaluate import Contest, Evaluation, OverlapScore, Score
from dsconvert.metrics.frechet import Comparison
from dsconvert.metrics.networks import NAMES
from dsconvert.report.layout import compact
from dsconvert.util.numbers import percent

_WHAT = {
    "student": "file to real images",
    "teacher": "original to real images",
    "to teacher": "file to the original",
}
_PAIRS = {"psnr": "PSNR, dB", "pd-lite0": "PD-lite0"}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """All evaluations of one call."""

    draws: tuple[Evaluation, ...]
    """On independent latents; the first has the bootstrap intervals that are shown."""
    classes: Mapping[int, Evaluation]
    """By class, where classes were asked for."""
    samples: int
    notes: tuple[str, ...]


def report(options: EvalJob, found: Measured) -> list[Table | str]:
    """Return the verdicts, the tables and the notes; only the verdicts with ``--quiet``."""
    first = found.draws[0]
    lines = verdicts(options, first)
    if options.quiet:
        return [*lines]
    parts: list[Table | str] = [f"{options.snapshot}, {found.samples} images a side", *lines]
    tables = [
        _distances(options, first) if first.scores else None,
        _overlaps(options, first) if first.overlaps else None,
        _pairs(first) if first.pairs else None,
        _draws(options, found) if len(found.draws) > 1 else None,
        _classes(options, found) if found.classes else None,
    ]
    for table in tables:
        parts += [] if table is None else ["", table]
    return [*parts, "", *(f"note: {n}." for n in found.notes)]


def _name(options: EvalJob, metric: str) -> str:
    """Return the name of a metric; that of a second network ends in the network's name."""
    if options.backbone is not None and metric.endswith("-backbone"):
        return f"{metric[:2].upper()}-{options.backbone.partition('=')[0].strip()}"
    return next((name for key, name in NAMES.items() if key == metric), _PAIRS.get(metric, metric))


def _interval(pair: tuple[float, float], metric: str) -> str:
    return f"{_value(pair[0], metric)} to {_value(pair[1], metric)}"


def _value(value: float, metric: str) -> str:
    digits = {"kid": 5, "psnr": 1, "pd-lite0": 4}.get(metric, 2)
    return f"{value:.{digits}f}"


def _distances(options: EvalJob, found: Evaluation) -> Table:
    """Three lines a score: the distance, its noise floor, and their difference."""
    table = compact("", [], ["distance", "95 % interval"])
    for s in found.scores:
        c: Comparison = s.comparison
        rows = (
            (f"{_name(options, s.metric)}, {_WHAT[s.what]}", c.value, c.value_interval),
            ("  noise floor", c.floor, c.floor_interval),
            ("  above the floor", c.value - c.floor, c.interval),
        )
        for what, value, interval in rows:
            table.add_row(what, _value(value, s.metric), _interval(interval, s.metric))
        if s.metric != "kid":
            table.add_row(
                "  times the floor", f"{s.ratio:.3f}x", _interval(c.ratio_interval, "ratio")
            )
    return table


def _overlaps(options: EvalJob, found: Evaluation) -> Table:
    table = compact("", [], ["precision", "95 %", "recall", "95 %"])
    for o in found.overlaps:
        for what, one in ((f"{_name(options, o.metric)}, {_WHAT[o.what]}", o.found),
                          ("  noise floor", o.floor)):  # fmt: skip
            table.add_row(
                what,
                percent(one.precision),
                _shares(one.precision_interval),
                percent(one.recall),
                _shares(one.recall_interval),
            )
    return table


def _shares(pair: tuple[float, float]) -> str:
    return f"{100 * pair[0]:.1f} to {100 * pair[1]:.1f}"


def _pairs(found: Evaluation) -> Table:
    table = compact(
        "latent by latent, to the original", [], ["mean", "95 %", "median", "worst", "unrelated"]
    )
    for p in found.pairs:
        row = (p.mean, p.interval, p.median, p.worst, p.unrelated)
        cells = [
            _interval(v, p.metric) if isinstance(v, tuple) else _value(v, p.metric) for v in row
        ]
        table.add_row(_PAIRS[p.metric], *cells)
    return table


def _draws(options: EvalJob, found: Measured) -> Table:
    table = compact(f"over {len(found.draws)} independent draws", [], ["mean", "95 % interval"])
    for row in over_draws(found.draws):
        what = f"{_name(options, row.metric)}, {_WHAT[row.what]}"
        digits = "psnr" if row.metric == "psnr" else row.metric
        kind = "ratio" if row.quantity == "ratio" else digits
        share = row.metric.startswith("pr-")
        shown = percent(row.mean) if share else _value(row.mean, kind)
        interval = _shares(row.interval) if share else _interval(row.interval, kind)
        quantity = {"value": "", "mean": "", "ratio": ": times the floor"}.get(
            row.quantity, f": {row.quantity.replace('floor_', 'noise floor of ')}"
        )
        table.add_row(what + quantity.replace(": floor", ": noise floor"), shown, interval)
    return table


def _classes(options: EvalJob, found: Measured) -> Table:
    """One line a class: every distance as a multiple of its floor, and the pairs."""
    first = next(iter(found.classes.values()))
    heads = [f"{_name(options, s.metric)} / floor" for s in first.scores if s.metric != "kid"]
    for o in first.overlaps:
        name = _name(options, o.metric).partition("-")[2]
        heads += [f"precision, {name}", f"recall, {name}"]
    heads += [_PAIRS[p.metric] for p in first.pairs]
    table = compact("class", [], heads)
    for label, one in found.classes.items():
        cells = [
            f"{s.comparison.value:.1f} / {s.comparison.floor:.1f} ({s.ratio:.2f}x)"
            for s in one.scores
            if s.metric != "kid"
        ]
        for o in one.overlaps:
            cells += [
                f"{percent(o.found.precision)} / {percent(o.floor.precision)}",
                f"{percent(o.found.recall)} / {percent(o.floor.recall)}",
            ]
        cells += [_value(p.mean, p.metric) for p in one.pairs]
        table.add_row(str(label), *cells)
    return table


def verdicts(options: EvalJob, found: Evaluation) -> list[str]:
    """Return a sentence for each distance and contest; for the pairs where there is none."""
    lines: list[str] = []
    for s in found.scores:
        verdict = "distinguishable" if s.distinguishable else "not distinguishable"
        whom = "the original" if s.what == "to teacher" else "real images"
        lines.append(f"{_name(options, s.metric)}, {_WHAT[s.what]}: {verdict} from {whom}")
    lines += [_contest(options, c) for c in found.contests]
    if lines:
        return lines
    lines += [_overlap(options, o) for o in found.overlaps]
    return lines or [f"{_PAIRS[p.metric]}: {_value(p.mean, p.metric)}" for p in found.pairs]


def _overlap(options: EvalJob, score: OverlapScore) -> str:
    return (
        f"{_name(options, score.metric)}, {_WHAT[score.what]}: precision "
        f"{percent(score.found.precision)}, recall {percent(score.found.recall)}"
    )


def _contest(options: EvalJob, contest: Contest) -> str:
    low, high = contest.comparison.interval
    between = _interval((low, high), contest.metric)
    if not contest.distinguishable:
        verdict = "not distinguishable from the original"
    else:
        verdict = "farther than the original" if low > 0 else "nearer than the original"
    return (
        f"{_name(options, contest.metric)} to real images, file minus original: {between} (95 %): "
        f"{verdict}"
    )


def _rows(found: Evaluation) -> dict[str, Any]:
    def row(entry: Score | Contest) -> dict[str, Any]:
        facts: dict[str, Any] = asdict(entry)
        if isinstance(entry, Score):
            facts["ratio"] = entry.ratio
        return {**facts, "distinguishable": entry.distinguishable}

    return {
        "scores": [row(s) for s in found.scores],
        "student_minus_teacher": [row(c) for c in found.contests],
        "precision_recall": [asdict(o) for o in found.overlaps],
        "pairs": [asdict(p) for p in found.pairs],
    }


def as_data(options: EvalJob, found: Measured) -> dict[str, Any]:
    """Return everything for ``--json``."""
    first = found.draws[0]
    spread: list[OverDraws] = [*over_draws(found.draws)] if len(found.draws) > 1 else []
    return {
        "snapshot": options.snapshot,
        "against": options.against,
        "data": options.data,
        "backbone": options.backbone,
        "trunc": options.trunc,
        **_rows(first),
        "over_draws": [asdict(d) for d in spread],
        "per_class": [{"class": label, **_rows(one)} for label, one in found.classes.items()],
        "notes": list(found.notes),
    }
