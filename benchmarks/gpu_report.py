"""The results of ``gpu.py`` as a table: one line a row and mode, one column an operation."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from gpu_kernels import FIRST, KERNELS, REST
from gpu_rows import MODES, ORDER, PLAIN, ROWS, SHIPPED

KINDS = {
    "forward": "forward",
    "backward": "G forward + backward",
    "train": "whole training step",
    "kernel": "kernel",
    "kernel step": "kernel, forward + backward",
}
_GRAPH = ("official", "FP32, graph")
_FIRST, _REST = (ORDER.index(at) for at in (("official", "BF16", "FTB"), (*_GRAPH, "f")))
EVERYTHING = (*ORDER[:_FIRST], *FIRST, *ORDER[_FIRST:_REST], *REST, *ORDER[_REST:])
"""Generators and kernels, the most telling first."""
PROFILED = {("official", SHIPPED), ("official", "BF16")} | {
    (row, PLAIN) for row in ("fast", "paper", "half width, balanced", "fast, lean")
}
"""Rows and modes whose longest kernels are in the table; the JSON has those of all."""
SHOWN = 6
UNSTEADY = 0.1
"""Half the interquartile range, as a share of the median, beyond which a time is marked with ~."""


def _time(seconds: float) -> str:
    ms = 1000 * seconds
    return f"{ms:.0f} ms" if ms >= 100 else f"{ms:.1f} ms" if ms >= 10 else f"{ms:.2f} ms"


def _cell(row: dict[str, Any] | None, shipped: dict[str, Any] | None, best: float | None) -> str:
    if row is None:
        return "-"
    if "error" in row:
        return f"failed: {row['error'][:120]}".replace("|", "/").replace("\n", " ")
    median = row["median_s"]
    mark = "~" if (row["high_s"] - row["low_s"]) / 2 / median > UNSTEADY else ""
    parts = [f"{mark}{_time(median)}"]
    if shipped is not None and "error" not in shipped:
        parts.append(f"**{shipped['median_s'] / median:.1f}x**")
    if best is not None:
        parts.append(f"{best / median:.2f}x of its best")
    parts.append(f"floor {row['times_floor']:.1f}x ({row['floor_of']})")
    busy = (row.get("profile") or {}).get("busy_s")
    if row["row"].startswith("kernel") and busy:
        # Python launches small maps more slowly than the card computes them.
        parts.append(f"card busy {_time(busy)}, {busy / row['floor_s']:.1f}x")
    if row["peak_bytes"]:
        parts.append(f"{row['peak_bytes'] / 2**30:.2f} GiB")
    if row["batch"] > 1:
        parts.append(f"{row['images_per_s']:.0f}/s")
    if row.get("finite") is False:
        parts.append("NOT FINITE")
    if "fell_back" in row:
        parts.append("FELL BACK")
    if "difference" in row:
        parts.append(f"differs by {row['difference']:.1g}")
    return ", ".join(parts)


def _best(rows: list[dict[str, Any]], operation: str) -> float | None:
    """The official generator's least time, in any mode."""
    times = [
        r["median_s"]
        for r in rows
        if r["row"] == "official" and r["operation"] == operation and "error" not in r
    ]
    return min(times, default=None)


def _mode(name: str) -> str:
    mode = MODES[name]
    facts = [
        f"weights {mode.dtype}, {mode.step_dtype} with backward, {mode.precision} in training",
        "TF32 allowed" if mode.tf32 else "no TF32",
        "noise on the CPU, copied" if mode.noise == "official" else "noise on the device",
        *(["channels_last"] if mode.channels_last else []),
        *(["torch.compile"] if mode.compile else []),
        *(["one CUDA graph"] if mode.graph else []),
        "cuDNN's benchmark mode" if mode.autotune else "no cuDNN benchmark mode",
    ]
    return f"- {name}: {', '.join(facts)}"


def markdown(data: dict[str, Any]) -> str:
    """Everything that was measured, as markdown."""
    meta, rows = data["meta"], data["rows"]
    at = {(r["row"], r["mode"], r["operation"]): r for r in rows}
    operations = list(dict.fromkeys(r["operation"] for r in rows))
    names = [o for k in KINDS for o in sorted(operations) if o.rpartition("_")[0] == k]
    rates = "; ".join(
        f"{k} {v['macs_per_s'] / 1e12:.3g} TMAC/s, {v['bytes_per_s'] / 1e12:.3g} TB/s"
        for k, v in meta["rates"].items()
    )
    lines = [
        "# On a GPU",
        "",
        f"{meta['machine']}, driver {meta['driver']}, torch {meta['torch']}, "
        f"triton {meta['triton']}; official fastgan, {meta['resolution']} px, ngf {meta['ngf']}, "
        f"random weights, factors by {meta['init']}: time and memory only. Made by "
        "`python benchmarks/gpu.py SECONDS`.",
        "",
        f"Measured rates (a large matrix product, a large copy): {rates}. *floor*: how many times "
        "the time that the bytes and MACs of its convolutions would take at those rates, the "
        "larger of the two. Medians of runs in a row between CUDA events; ~: unsteady (more than "
        f"±{100 * UNSTEADY:.0f} %). Bold: times faster than the official generator as shipped "
        f"({SHIPPED}); *of its best*: as fast as the official one in its fastest mode here. Of a "
        "*kernel* the floor is a copy of the bytes that it must move, and *card busy* the time "
        "without what Python takes to launch it.",
        "",
    ]
    if rows:
        lines.append("| row | mode | " + " | ".join(_heading(o) for o in names) + " |")
        lines.append("|" + "---|" * (2 + len(names)))
    for row in (*ROWS, *KERNELS):
        for mode in MODES:
            if not any((row, mode, o) in at for o in names):
                continue
            cells = []
            for o in names:
                shipped = at.get(("official", SHIPPED, o))
                cells.append(_cell(at.get((row, mode, o)), shipped, _best(rows, o)))
            lines.append(f"| {row} | {mode} | " + " | ".join(cells) + " |")
    missing = meta.get("missing", [])
    if missing:
        lines += ["", f"Not measured yet ({len(missing)}): " + "; ".join(missing) + "."]
    used = [m for m in MODES if any(r["mode"] == m for r in rows)]
    lines += ["", "Modes:", "", *[_mode(m) for m in used], *_profiles(rows), ""]
    return "\n".join(lines)


def _heading(operation: str) -> str:
    kind, _, batch = operation.rpartition("_")
    return f"{KINDS[kind]}, batch {batch}"


def _profiles(rows: list[dict[str, Any]]) -> list[str]:
    """The longest kernels of the rows that are compared most."""
    lines: list[str] = []
    for r in rows:
        found = r.get("profile", {}).get("longest")
        if not found or (r["row"], r["mode"]) not in PROFILED or r["batch"] == 1:
            continue
        profile = r["profile"]
        lines += [
            "",
            f"{r['row']}, {r['mode']}, {_heading(r['operation'])}: {profile['launched']} kernels, "
            f"{_time(profile['busy_s'])} busy of {_time(r['median_s'])}",
            "",
        ]
        lines += [f"- {100 * k['share']:.0f} %, {k['calls']}x `{k['name']}`" for k in found[:SHOWN]]
    return ["", "## The longest kernels", *lines] if lines else []


def order_of(key: tuple[Any, ...]) -> tuple[int, str]:
    """Return where a row stands: in the order in which rows are measured."""
    row, mode, operation = key
    places = [i for i, (r, m, _) in enumerate(EVERYTHING) if (r, m) == (row, mode)]
    return (places[0] if places else len(EVERYTHING)), operation


def main() -> None:
    """Write the table beside a measured JSON anew."""
    default = Path(__file__).parent / "results" / "gpu.json"
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    data = json.loads(path.read_text(encoding="utf-8"))
    path.with_suffix(".md").write_text(markdown(data), encoding="utf-8")


if __name__ == "__main__":
    main()
