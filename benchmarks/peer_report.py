"""The results of ``peers.py`` as a table for the README and a plot.

python benchmarks/peer_report.py [benchmarks/results/peers.json]    # both anew, nothing measured
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

_TIMES = (
    ("forward_1", "batch 1", 1, 1),
    ("forward_8", "batch 8", 8, 1),
    ("step_4", "fwd + bwd, batch 4", 4, 3),
)
"""Key, heading, samples, and how many times the forward pass's work (a backward pass is two)."""


UNSTEADY = 0.1
"""Half the range of a row's rounds, as a share of their median, beyond which they are unsteady: no
ratio is given where that is so of the official one's, and a ratio is marked where of the row's."""


def _spread(runs: list[float]) -> float:
    """Half the range, as a share of the median."""
    return (max(runs) - min(runs)) / 2 / statistics.median(runs)


def _ratio(row: dict[str, Any], name: str) -> str:
    """How many times faster than the official one in the same rounds, where those were steady.

    ``~`` stands before it where the row's own were not.
    """
    reference = row.get("reference_seconds", {}).get(name)
    if not reference or row["name"] == "official":
        return ""
    if _spread(reference) > UNSTEADY:
        return ", official unsteady"
    own = row["seconds"][name]
    mark = "~" if _spread(own) > UNSTEADY else ""
    return f", **{mark}{statistics.median(reference) / statistics.median(own):.1f}x**"


def _median(row: dict[str, Any], name: str) -> float | None:
    runs = row.get("seconds", {}).get(name)
    return statistics.median(runs) if runs else None


def _time(row: dict[str, Any], name: str) -> str:
    value = _median(row, name)
    if value is None:
        return "-"
    shown = f"{value:.2f} s" if value >= 1 else f"{1000 * value:.0f} ms"
    return f"{shown} ±{100 * _spread(row['seconds'][name]):.0f} %{_ratio(row, name)}"


def floor(row: dict[str, Any], meta: dict[str, Any], samples: int, passes: int) -> float:
    """Seconds below which this machine can't be: its MACs, or its bytes, at the machine's best."""
    macs = (row["macs"] or 0) * samples * passes
    moved = 4 * row["params"] + row["traffic_bytes"] * samples * passes
    return max(macs / (1e9 * meta["gmac_per_s"]), moved / (1e9 * meta["gb_per_s"]))


def _above(row: dict[str, Any], meta: dict[str, Any]) -> str:
    cells = []
    for name, _, samples, passes in _TIMES:
        value = _median(row, name)
        cells.append("-" if value is None else f"{value / floor(row, meta, samples, passes):.1f}")
    return " / ".join(cells)


def _mib(value: float | None) -> str:
    return "-" if value is None else f"{value / 2**20:.0f}"


def _table(size: str, rows: list[dict[str, Any]], meta: dict[str, Any]) -> list[str]:
    lines = [
        f"### {'fastgan_lite, 256' if size.startswith('lite') else 'fastgan, ' + size} px",
        "",
        "| | parameters (M) | GMAC | "
        + " | ".join(heading for _, heading, _, _ in _TIMES)
        + " | above the floor | peak MiB, batch 8 / fwd + bwd | kept for backward, MiB | file MiB "
        "| made in | PSNR dB |",
        "|" + "---|" * 12,
    ]
    for row in rows:
        if "skipped" in row:
            lines.append(f"| {row['name']} | not measured: {row['skipped'][:160]} |" + " |" * 10)
            continue
        peaks = row["peak_bytes"]
        made, error = row["conversion_s"], row["psnr_db"]
        lines.append(
            f"| {row['name']} | {row['params'] / 1e6:.2f} | {(row['macs'] or 0) / 1e9:.2f} | "
            + " | ".join(_time(row, name) for name, _, _, _ in _TIMES)
            + f" | {_above(row, meta)} "
            f"| {_mib(peaks.get('forward_8'))} / {_mib(peaks.get('step_4'))} "
            f"| {_mib(row['kept_bytes'].get('step_4'))} | {_mib(row['file_bytes'])} "
            f"| {'-' if made is None else f'{made:.1f} s'} "
            f"| {'-' if error is None else f'{error:.1f}'} |"
        )
    notes = [f"{r['name']}: {'; '.join(r['notes'])}" for r in rows if r.get("notes")]
    return [*lines, *(["", *[f"- {n}" for n in notes]] if notes else []), ""]


def markdown(data: dict[str, Any]) -> str:
    """Everything that was measured, as markdown."""
    meta = data["meta"]
    versions = ", ".join(f"{k} {v}" for k, v in meta["versions"].items() if v)
    loads = [r["load_average"][0] for r in data["rows"] if r.get("load_average")]
    lines = [
        "# Beside its peers",
        "",
        f"{meta['machine']}, {meta['cores']} cores, {meta['threads']} threads, {meta['device']}, "
        f"{meta['dtype']}; torch {meta['torch']}, {versions}; {meta['date']}; ngf {meta['ngf']}, "
        f"random weights; conversions with `--init {meta['init']}`"
        + (f" --calibrate {meta['calibrate']}" if meta["calibrate"] is not None else "")
        + ".",
        "",
        f"The machine at its best: {meta['gmac_per_s']:.0f} GMAC/s in a matrix product, "
        f"{meta['gb_per_s']:.0f} GB/s in a copy. *Above the floor*: how many times the time that "
        "the MACs, or the bytes that convolutions read and write, would take at that speed (batch "
        "1 / batch 8 / forward + backward).",
        "",
        "One process a row, runs interleaved, medians, ± half the range; bold: how many times "
        "faster than the official one in the same rounds, left out where that one's own were "
        f"unsteady (more than ±{100 * UNSTEADY:.0f} %), and with a ~ where the row's own were. "
        f"Load average while measuring (this run alone is about {meta['threads']}): "
        + (f"{min(loads):.1f} to {max(loads):.1f}." if loads else "unknown."),
        "Image error is to the original with the same latents and noise, on random weights, "
        "untrained and unfitted unless said otherwise: it shows which rows are exact, not quality.",
        "",
    ]
    for size in dict.fromkeys(r["size"] for r in data["rows"]):
        lines += _table(size, [r for r in data["rows"] if r["size"] == size], meta)
    return "\n".join(lines) + "\n"


def plot(data: dict[str, Any], path: Path) -> None:
    """MACs against time, log-log, the ideal line through the official generator."""
    try:
        import matplotlib as mpl
    except ImportError:
        print("no plot: pip install matplotlib")
        return
    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    rows = [r for r in data["rows"] if "skipped" not in r and r.get("macs")]
    sizes = list(dict.fromkeys(r["size"] for r in rows))
    if not sizes:
        return
    # One look a row, in every panel: not all rows can do everything.
    names = list(dict.fromkeys(r["name"] for r in rows))
    colours = plt.get_cmap("tab10").colors
    look = {
        n: {"marker": "osD^vPX*<>hp"[i % 12], "color": colours[i % 10]} for i, n in enumerate(names)
    }
    figure, axes = plt.subplots(
        len(sizes), len(_TIMES), figsize=(4.6 * len(_TIMES) + 2.6, 4.2 * len(sizes)), squeeze=False
    )
    for line, size in zip(axes, sizes, strict=True):
        here = [r for r in rows if r["size"] == size]
        for axis, (name, heading, samples, passes) in zip(line, _TIMES, strict=True):
            points = [(r, t) for r in here if (t := _median(r, name)) is not None]
            base = next(((r["macs"], t) for r, t in points if r["name"] == "official"), None)
            for r, t in points:
                axis.plot(r["macs"] / 1e9, t, label=r["name"], linestyle="none", **look[r["name"]])
            if points and base:
                low = min(r["macs"] for r, _ in points)
                ends = [low, base[0]]
                axis.plot(
                    [m / 1e9 for m in ends],
                    [base[1] * m / base[0] for m in ends],
                    color="grey",
                    linestyle="--",
                    label="ideal: time as MACs",
                )
                floors = sorted(
                    (r["macs"] / 1e9, floor(r, data["meta"], samples, passes)) for r, _ in points
                )
                axis.plot(*zip(*floors, strict=True), color="lightgrey", label="machine's floor")
            axis.set(
                xscale="log", yscale="log", xlabel="GMAC a sample", ylabel="seconds",
                title=f"{size} px: {heading}",
            )  # fmt: skip
            for each in (axis.xaxis, axis.yaxis):
                each.set_major_locator(LogLocator(subs=(1, 2, 5)))
                each.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
                each.set_minor_formatter(NullFormatter())
            axis.grid(True, which="both", alpha=0.2)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="center right")
    figure.tight_layout(rect=(0, 0, 1 - 2.6 / figure.get_figwidth(), 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Write ``peers.md`` and ``peers.png`` beside the measured ``peers.json``."""
    default = Path(__file__).parent / "results" / "peers.json"
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    data = json.loads(path.read_text(encoding="utf-8"))
    path.with_suffix(".md").write_text(markdown(data), encoding="utf-8")
    plot(data, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
