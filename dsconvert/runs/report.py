"""A run's folder as one self-contained HTML file: nothing is fetched, it can be mailed.

What is there is shown and what is not is left out: ``settings.json`` (or what the caller gives),
``stats.jsonl``, ``grids/*.png`` (in order of their names), ``side_by_side.png``, ``layers.json``
(rows of module, parameters and MACs before and after; one pair of columns where nothing differs)
and ``results.json`` (final figures).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any, cast

from PIL import Image

from dsconvert.errors import UsageError
from dsconvert.runs.curves import curve, number
from dsconvert.util.files import whole_file

NAME = "report.html"
_BOOKKEEPING = frozenset(
    {"images", "kimg", "step", "steps", "tick", "stage", "processes", "fd_images"}
)
_LAST = frozenset({"seconds", "memory", "peak_memory_bytes", "rate", "sec_per_kimg", "lr"})
"""What matters least is drawn last."""
_TOGETHER = {
    "loss": {"loss_g": "generator", "loss_d": "discriminator"},
    "score": {"score_real": "real", "score_fake": "generated"},
    "sign of the score": {"sign_real": "real", "sign_fake": "generated"},
    "FD-lite0": {"fd_lite0": "G_ema to real images", "fd_floor": "real to other real images"},
}
"""Charts of several quantities, which are read against each other."""
_TITLES = {
    "sec_per_kimg": "seconds per kimg",
    "peak_memory_bytes": "peak memory, bytes",
}
_HELD = "held_"
_ON = "on"
_FRAMES = 16
_WIDEST = 1600
_HEAVY = 250_000
"""Pictures of more pixels are embedded as JPEG: sixteen PNGs of this size can't be mailed."""

_STYLE = """
:root { color-scheme: light dark; --ink: #1a1c20; --soft: #5b616b; --line: #dfe2e7; --page: #fff;
  --card: #f6f7f9; --s0: #2f6fde; --s1: #d9622b; --s2: #2c9a62; --s3: #a34fc4; --s4: #b28a00;
  --s5: #d03f6f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaee; --soft: #9aa1ad; --line: #343942;
  --page: #15171b; --card: #1d2025; --s0: #6d9ff5; --s1: #f0905f; --s2: #5cc690; --s3: #c98be2;
  --s4: #d9b740; --s5: #f0799f; } }
body { margin: 0 auto; max-width: 1120px; padding: 28px 20px 60px; background: var(--page);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 24px; margin: 0; } h2 { font-size: 17px; margin: 36px 0 10px; }
p.sub { color: var(--soft); margin: 4px 0 0; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; }
.tile { background: var(--card); border-radius: 8px; padding: 10px 16px; min-width: 120px; }
.tile b { display: block; font-size: 20px; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 13px; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 14px; }
figure { margin: 0; background: var(--card); border-radius: 8px; padding: 10px 12px; }
figcaption { font-size: 13px; color: var(--soft); }
svg { width: 100%; height: auto; display: block; }
.grid { stroke: var(--line); } .tick { fill: var(--soft); font-size: 10px; }
.floor { stroke: var(--soft); stroke-dasharray: 5 4; } i.floor {
  border-top: 2px dashed var(--soft); }
polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.legend { font-size: 12px; color: var(--soft); display: flex; flex-wrap: wrap; gap: 4px 14px; }
.legend i { display: inline-block; width: 14px; margin-right: 5px; vertical-align: middle;
  border-top-width: 2.5px; border-top-style: solid; }
.s0 { stroke: var(--s0); border-color: var(--s0); }
.s1 { stroke: var(--s1); border-color: var(--s1); }
.s2 { stroke: var(--s2); border-color: var(--s2); }
.s3 { stroke: var(--s3); border-color: var(--s3); }
.s4 { stroke: var(--s4); border-color: var(--s4); }
.s5 { stroke: var(--s5); border-color: var(--s5); }
.dot { fill: currentColor; }
img { max-width: 100%; height: auto; border-radius: 4px; }
input[type=range] { width: 100%; } .frames img { display: none; } .frames img.on { display: block; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13px; }
td, th { text-align: left; padding: 4px 10px; border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.total td { font-weight: 600; }
"""

_SCRIPT = """
for (const box of document.querySelectorAll('.frames')) {
  const pictures = [...box.querySelectorAll('img')], label = box.querySelector('output');
  const show = i => { pictures.forEach((p, k) => p.classList.toggle('on', k == i));
    label.textContent = pictures[i].alt; };
  const slider = box.querySelector('input');
  slider.addEventListener('input', () => show(+slider.value));
  show(+slider.value);
}
"""


def write_report(folder: str | Path, *, title: str | None = None) -> Path:
    """Write ``FOLDER/report.html`` from what the run left there.

    Raises:
        UsageError: the folder holds no ``stats.jsonl`` or ``settings.json``.
        OutputError: it can't be written.
    """
    place = Path(folder)
    target = place / NAME
    text = run_report(place, title=title)
    with whole_file(target, overwrite=True) as beside:
        # A folder's name may hold bytes that are no text.
        beside.write_text(text, encoding="utf-8", errors="backslashreplace")
    return target


def run_report(folder: Path, *, title: str | None = None) -> str:
    """The report of a run's folder, as one HTML document.

    Raises:
        UsageError: see :func:`write_report`.
    """
    rows = _rows(folder / "stats.jsonl")
    settings = _json(folder / "settings.json")
    if not rows and not settings:
        raise UsageError(f"{folder} holds neither stats.jsonl nor settings.json: it is no run.")
    command = str(settings.get("command", "run")) if isinstance(settings, dict) else "run"
    heading = title or f"dsconvert {command}: {folder.resolve().name}"
    body = [
        f"<h1>{escape(heading)}</h1>",
        _subtitle(rows),
        _tiles(_json(folder / "results.json")),
        _pictures(folder),
        _curves(rows),
        _frames(sorted((folder / "grids").glob("*.png"))),
        _layers(_json(folder / "layers.json")),
        _settings(settings),
    ]
    return page(heading, "".join(body))


def page(title: str, body: str) -> str:
    """A whole document in the report's style; ``body`` is HTML, ``title`` is not."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"{body}<script>{_SCRIPT}</script></body></html>\n"
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # a last line that a crash cut short
                continue
            if isinstance(row, dict):
                found.append(cast("dict[str, Any]", row))
    return found


def _json(path: Path) -> Any:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}


def _subtitle(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    last = rows[-1]
    facts = [f"{number(float(last['images']))} images"] if "images" in last else []
    if isinstance(last.get("seconds"), int | float):
        facts.append(f"{last['seconds'] / 60:.1f} minutes")
    return f'<p class="sub">{escape(", ".join(facts))}</p>'


def _tiles(results: Any) -> str:
    if not isinstance(results, dict) or not results:
        return ""
    tiles = "".join(
        f'<div class="tile"><b>{escape(_text(v))}</b><span>{escape(str(k))}</span></div>'
        for k, v in cast("dict[str, Any]", results).items()
    )
    return f'<h2>Results</h2><div class="tiles">{tiles}</div>'


def _text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return json.dumps(value) if isinstance(value, dict | list) else str(value)
    return number(value) if isinstance(value, float) else f"{value:,}"


def _picture(path: Path) -> str:
    """The PNG as a data URI, never wider than a screen; a large one as JPEG."""
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
        if picture.width > _WIDEST:
            height = round(picture.height * _WIDEST / picture.width)
            picture = picture.resize((_WIDEST, height), Image.Resampling.LANCZOS)
        out = BytesIO()
        kind = "jpeg" if picture.width * picture.height > _HEAVY else "png"
        if kind == "jpeg":  # no halved colours: fine patterns would blur
            picture.save(out, format=kind, quality=90, subsampling=0)
        else:
            picture.save(out, format=kind, optimize=True)
    return f"data:image/{kind};base64," + base64.b64encode(out.getvalue()).decode("ascii")


def _pictures(folder: Path) -> str:
    path = folder / "side_by_side.png"
    if not path.is_file():
        return ""
    return (
        "<h2>Side by side</h2>"
        f'<img class="side" src="{_picture(path)}" alt="images of each kind, row by row">'
    )


def _frames(paths: Sequence[Path]) -> str:
    """Grids over time, behind a slider; evenly thinned out, the first and last always shown."""
    if not paths:
        return ""
    count = min(len(paths), _FRAMES)
    step = (len(paths) - 1) / max(count - 1, 1)
    shown = [paths[round(i * step)] for i in range(count)]
    images = "".join(
        f'<img src="{_picture(p)}" alt="{escape(_when(p))}" '
        f'class="{_ON if p is shown[-1] else ""}">'
        for p in shown
    )
    last = len(shown) - 1
    return (
        f'<h2>Grids over time</h2><div class="frames"><input type="range" min="0" max="{last}" '
        f'value="{last}" aria-label="time"><p class="sub"><output>{escape(_when(shown[-1]))}'
        f"</output></p>{images}</div>"
    )


def _when(path: Path) -> str:
    digits = "".join(c for c in path.stem if c.isdigit())
    return f"after {int(digits):,} images" if digits else path.stem


def _curves(rows: Sequence[Mapping[str, Any]]) -> str:
    """One chart for each quantity; a held-out quantity shares the chart of the trained one."""
    names = dict.fromkeys(
        k
        for row in rows
        for k, v in row.items()
        if isinstance(v, int | float) and not isinstance(v, bool) and k not in _BOOKKEEPING
    )
    charts: list[str] = []
    for title, members in _TOGETHER.items():
        series = {label: _series(rows, name) for name, label in members.items() if name in names}
        charts.append(curve(title, series, x_label="images"))
    grouped = {name for members in _TOGETHER.values() for name in members}
    for name in sorted((n for n in names if n not in grouped), key=lambda n: n in _LAST):
        if name.startswith(_HELD) and name.removeprefix(_HELD) in names:
            continue
        title = _TITLES.get(name, name.replace("_", " "))
        series = {"training": _series(rows, name)}
        if name.startswith(_HELD):
            series = {"held out": _series(rows, name)}
        elif _HELD + name in names:
            series["held out"] = _series(rows, _HELD + name)
        elif len(rows) > 1:
            series = {title: series["training"]}
        charts.append(curve(title, series, x_label="images"))
    return f'<h2>Curves</h2><div class="charts">{"".join(charts)}</div>' if any(charts) else ""


def _series(rows: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    found: list[tuple[float, float]] = []
    for index, row in enumerate(rows):
        value = row.get(name)
        if isinstance(value, int | float):
            found.append((float(row.get("images", index)), float(value)))
    return found


def _layers(layers: Any) -> str:
    """Rows as :func:`dsconvert.report.jsonable.layer_rows` makes them."""
    if not isinstance(layers, list) or not layers:
        return ""
    table = cast("list[dict[str, Any]]", layers)
    kinds = {"params": "parameters", "macs": "MACs"}
    # Where nothing was converted, "before" and "after" would be the same column twice.
    changed = any(row.get(f"{k}_before") != row.get(f"{k}_after") for row in table for k in kinds)
    sides = ("before", "after") if changed else ("after",)
    head = "".join(
        f'<th class="n">{name}{", " + side if changed else ""}</th>'
        for name in kinds.values()
        for side in sides
    )
    lines: list[str] = []
    for row in table:
        cells = [f"<td>{escape(str(row.get('name', '')))}</td>"]
        for kind in kinds:
            for side in sides:
                value = row.get(f"{kind}_{side}")
                text = number(value) if isinstance(value, int | float) else ""
                cells.append(f'<td class="n">{text}</td>')
        total = ' class="total"' if row.get("total") else ""
        lines.append(f"<tr{total}>{''.join(cells)}</tr>")
    return (
        f'<h2>Layers</h2><div class="scroll"><table class="layers"><tr><th>module</th>{head}</tr>'
        f"{''.join(lines)}</table></div>"
    )


def _settings(settings: Any) -> str:
    if not isinstance(settings, dict) or not settings:
        return ""
    lines: list[str] = []
    for key, value in _flat(cast("dict[str, Any]", settings)):
        lines.append(f"<tr><td>{escape(key)}</td><td>{escape(_text(value))}</td></tr>")
    return f'<h2>Settings</h2><div class="scroll"><table>{"".join(lines)}</table></div>'


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += _flat(cast("dict[str, Any]", value), f"{prefix}{key}.")
        elif isinstance(value, list) and any(isinstance(v, dict) for v in cast("Any", value)):
            # A plan's decisions: what they came to is in the table of layers.
            found.append((prefix + key, f"{len(cast('list[Any]', value))} entries"))
        else:
            found.append((prefix + key, value))
    return found
