"""The paper's experiment: dense and converted generators, one recipe, one data set, side by side.

    python examples/reproduce_paper.py --scale small --data stamps=stamps128.zip --out runs/paper
    python examples/reproduce_paper.py --scale paper --data pokemon=DIR --data landscape=DIR
    python examples/reproduce_paper.py --scale card --data emoji=emoji256.zip --seconds 500

An arm is a preset (``none`` is the dense generator), with a share of the channels behind a colon
(``none:0.5``) and a form for the backward pass behind a plus (``fast+lean``). The arms are trained
in short turns, one after the other, each turn in a process of its own: other work on the machine
affects all arms alike, and peak memory is measured per arm (on a CPU: of the whole process;
distances are measured after the last reading). The same command continues a run that was
interrupted. At the end (or with ``--table``) the script prints the table, with the paper's figures
beside ours, and writes it to the folder (table.md, table.json).

``--scale small`` is a small CPU run (128 px, ngf 32, 400 images per arm). It does not predict final
quality: after so few images no generator makes pictures. ``--scale paper`` is the official recipe
(256 px, ngf 128, batch 64). ``--scale card`` is for some minutes of a GPU: 128 px, 20,000 images
per arm in one turn, judged every 4,000, all arms of a seed before the next seed.
``--evaluate 0`` measures time and memory alone.

``--seconds`` stops the run that is under way at that time (it is saved) and prints the table of
the others. ``--archive FILE.tar.gz`` gets the statistics after each turn; extracted into the folder
that holds ``--out`` on another machine, they stand for the arms that are finished, and an
unfinished arm begins anew there.

Data sets. Each is a folder or zip of images. The centre square of each image is resized with
Lanczos, so no other preparation is needed:

- ffhq-1k: 1000 images of FFHQ (NVlabs/ffhq-dataset, folder images1024x1024/00000), 256 px.
- landscape, art-painting, pokemon: the few-shot sets of FastGAN (odegeasslbc/FastGAN-pytorch links
  them in its README: "few-shot-images"); their ``img`` folders as they are, 256 px.
- earthquake: the authors' own set, without a public source that we know; any folder, 512 px.
- landscape-debian, for ``--scale small`` here: ``examples/landscape_pictures.py`` cuts squares from
  the photographs of two Debian packages.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

PAPER = {
    "ffhq-1k": "+2.05 %", "landscape": "+0.26 %", "art-painting": "+1.72 %",
    "pokemon": "+11.01 %", "earthquake": "better",
}  # fmt: skip
"""Change of FID in the paper, in which training takes about 20 % less time and 15 % less memory."""
SCALES: dict[str, dict[str, str]] = {
    "small": {
        "resolution": "128", "ngf": "32", "batch": "8", "kimg": "0.4", "tick": "0.04",
        "evaluate": "200", "chunks": "5", "snap": "1000000", "presets": "none,paper",
        "seeds": "0,1",
    },
    "paper": {
        "resolution": "256", "ngf": "128", "batch": "64", "kimg": "1000", "tick": "4",
        "evaluate": "5000", "chunks": "10", "snap": "1000000", "presets": "none,paper",
        "seeds": "0,1",
    },
    "card": {
        "resolution": "128", "ngf": "32", "batch": "32", "kimg": "20", "tick": "2",
        "evaluate": "800", "chunks": "1", "snap": "2", "presets": "none,paper,fast+lean,none:0.5",
        "seeds": "0,1,2",
    },
}  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """One run: a data set, a generator (see the top of this file), a seed."""

    data: str
    preset: str
    seed: int
    folder: Path

    @property
    def words(self) -> list[str]:
        """The options of the trainer that make the generator."""
        name, _, form = self.preset.partition("+")
        preset, _, width = name.partition(":")
        return [
            "--preset", preset, *(["--width", width] if width else []),
            *(["--recompute", form] if form else []),
        ]  # fmt: skip

    def rows(self) -> list[dict[str, Any]]:
        """Return the statistics so far, one dictionary per tick."""
        path = self.folder / "stats.jsonl"
        if not path.is_file():
            return []
        return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]

    def images(self) -> int:
        """Return the number of images that the arm has been trained on."""
        return max((r["images"] for r in self.rows()), default=0)

    def timed(self) -> bool:
        """Return whether there is anything to report."""
        return any(r.get("sec_per_kimg") for r in self.rows())

    def judged(self) -> list[tuple[int, float]]:
        """Return pairs of images seen and FD-lite0 at that point."""
        return [(r["images"], r["fd_lite0"]) for r in self.rows() if "fd_lite0" in r]


INTERRUPTED = 130
"""The exit code of a training that was stopped and saved."""
SAVING = 20.0
"""Seconds that a training may take to save itself."""


def finished(words: Sequence[str], stop_at: float | None) -> int:
    """Run a command, interrupt it at ``stop_at`` (the clock's seconds), and return its code."""
    if stop_at is None:
        return subprocess.run(words, stdout=subprocess.DEVNULL).returncode
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as running:
        try:
            return running.wait(max(0.0, stop_at - time.time()))
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGINT)
        try:
            return running.wait(SAVING)
        except subprocess.TimeoutExpired:
            running.kill()
            return INTERRUPTED


def turn(
    arm: Arm, data: Path, options: argparse.Namespace, kimg: float, stop_at: float | None
) -> bool:
    """Train one arm up to ``kimg``, in a process of its own; return False if the time was over."""
    begin = [sys.executable, "-m", "dsconvert.train"]
    known = (arm.folder / "settings.json").is_file()
    if known and not (arm.folder / "checkpoints").is_dir():
        print(f"{arm.folder} came without its checkpoints: the arm begins anew", flush=True)
        shutil.rmtree(arm.folder)
        known = False
    if known:
        words = [*begin, "--resume", str(arm.folder), "--kimg", f"{kimg:g}"]
    else:
        words = [
            *begin, "--data", str(data), "--cfg", options.cfg, *arm.words,
            "--resolution", options.resolution, "--ngf", options.ngf, "--batch", options.batch,
            "--kimg", f"{kimg:g}", "--tick", options.tick, "--snap", options.snap, "--mirror",
            "--evaluate", options.evaluate, "--seed", str(arm.seed), "--discs", options.discs,
            "--keep-last", "1", "--out", str(arm.folder.parent), "--name", arm.folder.name,
        ]  # fmt: skip
        words += ["--channels-last"] if options.channels_last else []
        if options.recompute != "none" and "--recompute" not in words:
            words += ["--recompute", options.recompute]
        words += ["--precision", options.precision] if options.precision else []
    words += ["--device", options.device] if options.device else []
    words += ["--cuda-graph", options.cuda_graph] if options.cuda_graph else []
    code = finished([*words, "--quiet"], stop_at)
    if code and stop_at is not None and time.time() >= stop_at:
        return False
    if code not in (0, INTERRUPTED) and stop_at is not None:
        print(f"{arm.folder.name} failed with code {code}: the other arms go on", flush=True)
    elif code:
        raise SystemExit(f"stopped in {arm.folder}; the same command continues from there.")
    return True


def archive(target: Path, out: Path) -> None:
    """Write the statistics and settings of all arms, and the table, as one archive."""
    beside = target.with_name(f".{target.name}")
    with tarfile.open(beside, "w:gz") as made:
        for pattern in ("table.*", "*/settings.json", "*/stats.jsonl"):
            for path in sorted(out.glob(pattern)):
                made.add(path, f"{out.name}/{path.relative_to(out)}")
    beside.replace(target)


def named(preset: str) -> str:
    """Return an arm's generator as part of a folder's name."""
    return preset.replace(":", "-width").replace("+", "-")


def figures(arm: Arm) -> dict[str, float]:
    """Return the figures of one run for the table."""
    rows = arm.rows()
    ticks = [r for r in rows if r.get("sec_per_kimg")]
    judged = arm.judged()
    settings = json.loads((arm.folder / "settings.json").read_text())
    fd = {"fd": judged[-1][1]} if judged else {}
    floors = [r["fd_floor"] for r in rows if "fd_floor" in r]
    fd |= {"floor": floors[-1]} if floors else {}
    return fd | {
        "images": arm.images(),
        "sec_per_kimg": statistics.median(r["sec_per_kimg"] for r in ticks),
        "memory": max(r["peak_memory_bytes"] for r in ticks),
        "parameters": settings["cost"]["parameters"],
        "macs": settings["cost"]["macs"],
    }


def at_time(arm: Arm, seconds: float) -> float:
    """Interpolate the FD of an arm after ``seconds`` of training."""
    pace = figures(arm)["sec_per_kimg"] / 1000
    curve = [(images * pace, value) for images, value in arm.judged()]
    if not curve:
        return math.nan
    before = [p for p in curve if p[0] <= seconds] or curve[:1]
    after = [p for p in curve if p[0] >= seconds] or curve[-1:]
    (t0, v0), (t1, v1) = before[-1], after[0]
    return v0 if t1 <= t0 else v0 + (v1 - v0) * (seconds - t0) / (t1 - t0)


def at_images(arm: Arm, other: Arm) -> float:
    """Return the FD of an arm at the last number of images at which ``other`` was judged too."""
    mine, theirs = dict(arm.judged()), dict(other.judged())
    common = mine.keys() & theirs.keys()
    return mine[max(common)] if common else math.nan


def change(ours: Sequence[float], dense: Sequence[float]) -> str:
    """Format the mean change over the seeds, in percent, with the smallest and largest."""
    values = [100 * (o / d - 1) for o, d in zip(ours, dense, strict=True)]
    if any(map(math.isnan, values)):
        return ""
    text = f"{statistics.mean(values):+.1f} %"
    return text if len(values) < 2 else f"{text} ({min(values):+.1f} to {max(values):+.1f})"


def table(arms: Sequence[Arm], presets: Sequence[str]) -> tuple[Table, list[dict[str, Any]]]:
    """Return the paper's table, and its rows as data."""
    made = Table(title="dense and converted, one recipe")
    for name in (
        "data", "generator", "images", "parameters", "GMAC", "s/kimg", "change", "peak GiB",
        "change", "FD-lite0", "change, equal images", "change, equal time", "paper's FID",
    ):  # fmt: skip
        made.add_column(name)
    rows: list[dict[str, Any]] = []
    for data in dict.fromkeys(a.data for a in arms):
        runs = {
            p: {a.seed: a for a in arms if a.data == data and a.preset == p and a.timed()}
            for p in presets
        }
        for preset in presets:
            seeds = runs[preset].keys() & runs[presets[0]].keys()
            pairs = [(runs[preset][s], runs[presets[0]][s]) for s in sorted(seeds)]
            if not pairs:
                continue
            ours, dense = ([figures(pair[i]) for pair in pairs] for i in (0, 1))
            known = set.intersection(*(set(f) for f in ours))
            mean = {k: statistics.mean(f[k] for f in ours) for k in known}
            columns: dict[str, str] = dict.fromkeys(("time", "memory", "images", "equal_time"), "")
            if preset != presets[0]:
                for key, name in (("sec_per_kimg", "time"), ("memory", "memory")):
                    columns[name] = change([f[key] for f in ours], [f[key] for f in dense])
                columns["images"] = change(
                    [at_images(a, a0) for a, a0 in pairs], [at_images(a0, a) for a, a0 in pairs]
                )
                spent = [
                    min(f["images"] * f["sec_per_kimg"] for f in both) / 1000
                    for both in zip(ours, dense, strict=True)
                ]
                columns["equal_time"] = change(
                    *([at_time(pair[i], s) for pair, s in zip(pairs, spent, strict=True)]
                      for i in (0, 1))
                )  # fmt: skip
            fd = f"{mean['fd']:.0f}" if "fd" in mean else ""
            fd += f" (floor {mean['floor']:.1f})" if "floor" in mean else ""
            made.add_row(
                data, preset, f"{len(pairs)} x {mean['images']:g}",
                f"{mean['parameters'] / 1e6:.2f} M", f"{mean['macs'] / 1e9:.2f}",
                f"{mean['sec_per_kimg']:.3g}", columns["time"], f"{mean['memory'] / 2**30:.2f}",
                columns["memory"], fd, columns["images"], columns["equal_time"],
                PAPER.get(data, "") if preset == "paper" else "",
            )  # fmt: skip
            curves = [a.judged() for a, _ in pairs]
            rows.append(
                {"data": data, "preset": preset, "runs": ours, "changes": columns, "fd": curves}
            )
    return made, rows


def markdown(made: Table, options: argparse.Namespace) -> str:
    """Return the table as Markdown, with the settings of the runs."""
    header = [str(c.header) for c in made.columns]
    cells = list(zip(*(map(str, c.cells) for c in made.columns), strict=True))
    lines = [" | ".join(line) for line in (header, ["---"] * len(header), *cells)]
    judged = f", judged by {options.evaluate} images a side" if options.evaluate != "0" else ""
    return (
        f"{options.cfg}, {options.resolution} px, ngf {options.ngf}, batch {options.batch}, "
        f"{float(options.kimg) * 1000:g} images a run, seeds {options.seeds}{judged}; "
        f"{options.device or 'the default device'}, {os.cpu_count()} CPU cores, torch "
        f"{version('torch')}, {time.strftime('%Y-%m-%d')}. Changes are to the first row of each "
        "data set: mean over the seeds (smallest to largest); for equal time the shorter of both "
        "runs counts.\n\n" + "".join(f"| {line} |\n" for line in lines)
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Train the turns that are missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--scale", choices=SCALES, default="small")
    add("--data", action="append", default=[], metavar="NAME=PATH")
    add("--out", type=Path, default=Path("runs/paper"))
    add("--cfg", default="fastgan")
    for name in SCALES["small"]:
        add(f"--{name}", help="replaces the value of --scale")
    add("--discs", default="4")
    add("--recompute", default="none", help="of arms that name no form")
    add("--channels-last", action="store_true")
    add("--device")
    add("--cuda-graph", help="auto, on or off; the trainer's default is auto")
    add("--precision", help="fp32, tf32 or bf16")
    add("--seconds", type=float, help="stop after so many, with what is done")
    add("--archive", type=Path, metavar="FILE", help="statistics of all arms, a .tar.gz")
    add("--table", action="store_true", help="only print the table of the runs so far")
    options = parser.parse_args(argv)
    stop_at = None if options.seconds is None else time.time() + options.seconds - SAVING
    for name, value in SCALES[options.scale].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    pairs = [word.partition("=") for word in options.data]
    if not pairs or not all(path for _, _, path in pairs):
        raise SystemExit("give at least one --data NAME=PATH (see the top of this file).")
    presets = options.presets.split(",")
    paths = {name: Path(path) for name, _, path in pairs}
    arms = [
        Arm(name, preset, seed, options.out / f"{name}-{named(preset)}-seed{seed}")
        for name in paths
        for seed in (int(s) for s in options.seeds.split(","))
        for preset in presets
    ]
    total, chunks = float(options.kimg), int(options.chunks)
    turns = [(i, arm) for i in range(0 if options.table else chunks) for arm in arms]
    for i, arm in turns:
        kimg = total * (i + 1) / chunks
        if arm.images() >= round(kimg * 1000):
            continue
        if stop_at is not None and time.time() >= stop_at:
            print("the time is over; the same command goes on", flush=True)
            break
        print(f"turn {i + 1} of {chunks}: {arm.folder.name}", flush=True)
        if not turn(arm, paths[arm.data], options, kimg, stop_at):
            print(f"the time is over in {arm.folder.name}, at {arm.images()} images", flush=True)
            break
        if options.archive:
            archive(options.archive, options.out)
    made, rows = table(arms, presets)
    Console(width=None if sys.stdout.isatty() else 180).print(made)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "table.json").write_text(json.dumps(rows, indent=2) + "\n")
    (options.out / "table.md").write_text(markdown(made, options))
    if options.archive:
        archive(options.archive, options.out)


if __name__ == "__main__":
    main()
