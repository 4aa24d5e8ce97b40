"""The report of a run: one self-contained HTML file, which fetches nothing and can be mailed.

It shows the files that a run's folder holds (:class:`dsconvert.runs.folder.RunFolder`) and leaves
out those that are missing. ``templates/run.html.j2`` lays it out; this module collects its data.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, cast

from PIL import Image

from dsconvert.errors import UsageError
from dsconvert.runs.curves import Chart, place_curves
from dsconvert.runs.folder import RunFolder, read_json
from dsconvert.runs.html import render
from dsconvert.runs.stats import read_stats
from dsconvert.util.files import whole_file
from dsconvert.util.numbers import amount, compact_number

_BOOKKEEPING = frozenset(
    {"images", "kimg", "step", "steps", "tick", "stage", "processes", "fd_images"}
)
_LAST = frozenset({"seconds", "memory", "peak_memory_bytes", "rate", "sec_per_kimg", "lr"})
"""The least important quantities, drawn last."""
_TOGETHER = {
    "loss": {"loss_g": "generator", "loss_d": "discriminator"},
    "score": {"score_real": "real", "score_fake": "generated"},
    "sign of the score": {"sign_real": "real", "sign_fake": "generated"},
    "FD-lite0": {"fd_lite0": "G_ema to real images", "fd_floor": "real to other real images"},
}
"""Charts of several quantities that a reader compares."""
_TITLES = {
    "sec_per_kimg": "seconds per kimg",
    "peak_memory_bytes": "peak memory, bytes",
}
_HELD_OUT = "held_"
_FRAMES = 16
_WIDEST = 1600
_LARGE = 250_000
"""Pictures of more pixels are embedded as JPEG: sixteen PNGs of this size are too large to mail."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A picture as a data URI, with a label."""

    source: str
    label: str


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """A line of the table of layers."""

    name: str
    cells: tuple[str, ...]
    total: bool


@dataclass(frozen=True, kw_only=True)
class LayerTable:
    """Parameters and MACs of each layer, before and after where they differ."""

    columns: tuple[str, ...]
    rows: tuple[LayerRow, ...]


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """The data of a report; empty parts are not shown."""

    progress: str
    results: tuple[tuple[str, str], ...]
    side_by_side: str | None
    charts: tuple[Chart, ...]
    frames: tuple[Frame, ...]
    layers: LayerTable | None
    settings: tuple[tuple[str, str], ...]


def write_report(folder: str | Path, *, title: str | None = None) -> Path:
    """Write ``report.html`` into a run's folder.

    Args:
        folder: of the run.
        title: of the report; None: the command and the folder's name.

    Raises:
        UsageError: the folder holds neither statistics nor settings.
        OutputError: the report can't be written.
    """
    files = RunFolder(Path(folder))
    text = run_report(files.path, title=title)
    with whole_file(files.report, overwrite=True) as beside:
        # The bytes of a folder's name need not be valid text.
        beside.write_text(text, encoding="utf-8", errors="backslashreplace")
    return files.report


def run_report(folder: Path, *, title: str | None = None) -> str:
    """Return the report of a run's folder as an HTML document; see :func:`write_report`.

    Raises:
        UsageError: the folder holds neither statistics nor settings.
    """
    files = RunFolder(folder)
    settings = _table(read_json(files.settings))
    run = collect(files)
    command = str(settings.get("command", "run"))
    heading = title or f"dsconvert {command}: {folder.resolve().name}"
    return render("run", title=heading, run=run)


def collect(files: RunFolder) -> RunReport:
    """Read everything that a report shows.

    Raises:
        UsageError: the folder holds neither statistics nor settings.
    """
    rows = read_stats(files.stats) if files.stats.is_file() else []
    settings = _table(read_json(files.settings))
    if not rows and not settings:
        raise UsageError(
            f"{files.path} holds neither {files.stats.name} nor {files.settings.name}: it is no "
            "run."
        )
    results = _table(read_json(files.results))
    sheet = files.side_by_side
    return RunReport(
        progress=_progress(rows),
        results=tuple((name, _text(value)) for name, value in results.items()),
        side_by_side=_data_uri(sheet) if sheet.is_file() else None,
        charts=tuple(_charts(rows)),
        frames=tuple(_frames(files.grids())),
        layers=_layers(read_json(files.layers)),
        settings=tuple((name, _text(value)) for name, value in _flat(settings)),
    )


def _table(value: Any) -> dict[str, Any]:
    """Return a JSON object with names as text; anything else counts as empty."""
    if not isinstance(value, dict):
        return {}
    return {str(k): v for k, v in cast("dict[Any, Any]", value).items()}


def _progress(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return how far the run has got: images and minutes."""
    if not rows:
        return ""
    last = rows[-1]
    facts = [f"{compact_number(float(last['images']))} images"] if "images" in last else []
    if isinstance(last.get("seconds"), int | float):
        facts.append(f"{last['seconds'] / 60:.1f} minutes")
    return ", ".join(facts)


def _text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return json.dumps(value) if isinstance(value, dict | list) else str(value)
    return compact_number(value) if isinstance(value, float) else f"{value:,}"


def _data_uri(path: Path) -> str:
    """Return a picture as a data URI, at most as wide as a screen; a large one as JPEG."""
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
        if picture.width > _WIDEST:
            height = round(picture.height * _WIDEST / picture.width)
            picture = picture.resize((_WIDEST, height), Image.Resampling.LANCZOS)
        out = BytesIO()
        name = "jpeg" if picture.width * picture.height > _LARGE else "png"
        if name == "jpeg":  # full colour resolution: chroma subsampling would blur fine patterns
            picture.save(out, format=name, quality=90, subsampling=0)
        else:
            picture.save(out, format=name, optimize=True)
    return f"data:image/{name};base64," + base64.b64encode(out.getvalue()).decode("ascii")


def _frames(paths: Sequence[Path]) -> list[Frame]:
    """Return at most 16 grids, evenly spaced in time, with the first and the last."""
    if not paths:
        return []
    count = min(len(paths), _FRAMES)
    step = (len(paths) - 1) / max(count - 1, 1)
    shown = [paths[round(i * step)] for i in range(count)]
    return [Frame(source=_data_uri(p), label=_when(p)) for p in shown]


def _when(path: Path) -> str:
    digits = "".join(c for c in path.stem if c.isdecimal())
    return f"after {int(digits):,} images" if digits else path.stem


def _charts(rows: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Return a chart of each quantity; a held-out quantity shares that of the trained one."""
    names = dict.fromkeys(
        k
        for row in rows
        for k, v in row.items()
        if isinstance(v, int | float) and not isinstance(v, bool) and k not in _BOOKKEEPING
    )
    wanted: list[tuple[str, dict[str, list[tuple[float, float]]]]] = []
    for title, members in _TOGETHER.items():
        series = {label: _series(rows, name) for name, label in members.items() if name in names}
        wanted.append((title, series))
    grouped = {name for members in _TOGETHER.values() for name in members}
    for name in sorted((n for n in names if n not in grouped), key=lambda n: n in _LAST):
        if name.startswith(_HELD_OUT) and name.removeprefix(_HELD_OUT) in names:
            continue
        title = _TITLES.get(name, name.replace("_", " "))
        series = {"training": _series(rows, name)}
        if name.startswith(_HELD_OUT):
            series = {"held out": _series(rows, name)}
        elif _HELD_OUT + name in names:
            series["held out"] = _series(rows, _HELD_OUT + name)
        elif len(rows) > 1:
            series = {title: series["training"]}
        wanted.append((title, series))
    placed = (place_curves(title, series, x_label="images") for title, series in wanted)
    return [chart for chart in placed if chart is not None]


def _series(rows: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    found: list[tuple[float, float]] = []
    for index, row in enumerate(rows):
        value = row.get(name)
        if isinstance(value, int | float):
            found.append((float(row.get("images", index)), float(value)))
    return found


def _layers(layers: Any) -> LayerTable | None:
    """Lay out rows of :func:`dsconvert.report.jsonable.layer_rows`."""
    given = cast("list[Any]", layers) if isinstance(layers, list) else []
    if not given or not all(isinstance(row, dict) for row in given):
        return None
    table = cast("list[dict[str, Any]]", given)
    quantities = {"params": "parameters", "macs": "MACs"}
    # Where nothing was converted, "before" and "after" would be the same column twice.
    changed = any(r.get(f"{q}_before") != r.get(f"{q}_after") for r in table for q in quantities)
    sides = ("before", "after") if changed else ("after",)
    columns = [
        f"{name}, {side}" if changed else name for name in quantities.values() for side in sides
    ]
    rows: list[LayerRow] = []
    for row in table:
        values = [row.get(f"{q}_{side}") for q in quantities for side in sides]
        cells = (amount(v) if isinstance(v, int) else "" for v in values)
        name = str(row.get("name", ""))
        rows.append(LayerRow(name=name, cells=tuple(cells), total=bool(row.get("total"))))
    return LayerTable(columns=tuple(columns), rows=tuple(rows))


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Flatten nested settings to dotted names."""
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += _flat(cast("dict[str, Any]", value), f"{prefix}{key}.")
        elif isinstance(value, list) and any(isinstance(v, dict) for v in cast("Any", value)):
            # The decisions of a plan: the table of layers shows their effect.
            found.append((prefix + key, f"{len(cast('list[Any]', value))} entries"))
        else:
            found.append((prefix + key, value))
    return found
