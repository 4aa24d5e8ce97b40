r"""The official generator and its conversions on a GPU, within the seconds that are given.

    python benchmarks/gpu.py 480                      # everything; useful from 120 seconds
    python benchmarks/gpu.py 120 --rows 'official;fast*' --modes 'FP32*;BF16'
    python benchmarks/gpu.py 60 --device cpu --small --out /tmp/gpu    # a trial, no card

The most telling rows come first (``gpu_rows.ORDER``). Before each the time is estimated from rows
like it, and a row that would not end in time is left for another run. A run can be stopped at any
moment and started again: rows that are there are not made again (``--again 'fast*'`` makes some
anew; ``--older 'fast*'`` does unless this commit measured them), failed ones are tried once more.
Results are written after each row: ``gpu.json`` and ``gpu.md``, see ``--out``. A row that fails, or
runs out of memory, says so, and the run goes on.

Needs torch, timm, accelerate, fvcore, rich, msgspec, Pillow and the project; ``bsconv`` and
``torch-pruning`` for the rows of that name. ``gpu_visit.sh`` runs it on a machine without internet.
"""

from __future__ import annotations

import argparse
import fnmatch
import functools
import os
import subprocess
import sys
import threading
import time
import traceback
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from gpu_kernels import KERNELS, WORKS, FellBackError, refuse
from gpu_measure import Counted, measure, rates, release
from gpu_report import EVERYTHING, markdown, order_of
from gpu_rows import MODES, Bench, Work, works
from peer_rows import Options, SkippedError
from results_file import Results

from dsconvert.bench import Settings, facts, settle

BUILD = 15.0
"""A first guess of the seconds in which a row's generator is made."""
GRACE = 4.0
"""Seconds before the end at which no row may be under way any more."""
ROOT = Path(__file__).resolve().parents[1]


def parse() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("seconds", type=float, help="the run ends by itself within them, from when "
                        "everything is imported")  # fmt: skip
    parser.add_argument("--end", type=float, help="when it ends instead, in seconds since 1970")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/gpu",
                        help="path of the results, without .json and .md")  # fmt: skip
    parser.add_argument("--small", action="store_true", help="ngf 2, batch 2: only a trial")
    parser.add_argument("--ngf", type=int, help="default 128, and 2 with --small")
    parser.add_argument("--rows", default="*", help="globs, separated by ;")
    parser.add_argument("--modes", default="*", help="globs, separated by ;")
    known = "of F, f (forward), B, T (train), K, k (kernels: forward, with backward)"
    parser.add_argument("--operations", default="FfBTKk", help=known)
    both = (
        "globs of a row, or of row, mode, operation and batch as they are printed; separated by ;"
    )
    parser.add_argument("--again", default="", help=f"what to measure anew: {both}")
    parser.add_argument("--older", default="", help="the same, unless this commit measured it")
    # A run that goes on in another process keeps it.
    parser.add_argument("--began", type=float, default=time.time(), help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.end = time.time() + args.seconds if args.end is None else args.end
    args.ngf = args.ngf or (2 if args.small else 128)
    return args


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _said(*command: str) -> str | None:
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else None


@functools.cache
def commit() -> str | None:
    """Return the commit that is measured: of the checkout, or as ``gpu_wheels.sh`` noted it."""
    note = ROOT / ".gpu/commit"
    return _said("git", "rev-parse", "--short", "HEAD") or (
        note.read_text(encoding="utf-8").strip() if note.is_file() else None
    )


def meta_of(args: argparse.Namespace, device: str) -> dict[str, Any]:
    """Return the conditions of the run."""
    query = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        **facts(Settings(device=device)),
        "driver": _said(*query) if device.startswith("cuda") else None,
        "triton": _version("triton"),
        "versions": {n: _version(n) for n in ("dsconvert", "timm", "bsconv", "torch-pruning")},
        "cudnn": torch.backends.cudnn.version() if device.startswith("cuda") else None,
        "resolution": 256,
        "ngf": args.ngf,
        "init": "SVD",
        "small": args.small,
    }


class Clock:
    """The time that is left, and how long rows like another one took."""

    def __init__(self, end: float, bench: Bench, results: Results) -> None:
        self._end, self._bench, self._results = end, bench, results

    @property
    def left(self) -> float:
        """Seconds until no row may be under way."""
        return self._end - time.time()

    def estimate(self, row: str, mode: str, work: Work) -> float:
        """Return the seconds that a row needs, from rows like it in this file, or by a guess."""
        compiled = MODES[mode].compile
        rows = [r for r in self._results.data["rows"] if "error" not in r]
        like = [
            r["spent_s"]
            for r in rows
            if r["operation"] == work.name and MODES[r["mode"]].compile == compiled
        ]
        guess = work.seconds + (work.compiling if compiled else 0.0)
        seconds = 1.2 * max(like) if like else guess
        if row in KERNELS or self._bench.has(row):
            return seconds
        return seconds + max([*self._bench.seconds.values()], default=BUILD)


class Watchdog:
    """Ends the process when the time is over, whatever it is doing; the results are on the disk."""

    def __init__(self, end: float, results: Results) -> None:
        self.row: dict[str, Any] | None = None
        """What is being measured."""
        self._results = results
        self._timer = threading.Timer(max(0.1, end - time.time()), self._over)
        self._timer.daemon = True

    def __enter__(self) -> Any:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def note(self, error: str) -> None:
        """Record that the row under way was not finished."""
        if self.row is not None:
            self._results.put(self.row | {"error": error, "session": None})

    def _over(self) -> None:
        self.note("the time was over")
        print("the time is over", flush=True)
        os._exit(verdict(self._results))


def verdict(results: Results) -> int:
    """Return the code that the process ends with; print which operations fell back, if any."""
    try:
        refuse(results.data["rows"])
    except FellBackError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def broken(device: str) -> bool:
    """Return whether the device answers no more: an illegal access spoils the whole process."""
    try:
        if device.startswith("cuda"):
            torch.cuda.synchronize()
            torch.zeros(1, device=device).add_(1).item()
    except RuntimeError:
        return True
    return False


def wanted(args: argparse.Namespace) -> list[tuple[str, str, Work]]:
    """Return what is to be measured, in order."""

    def chosen(name: str, globs: str) -> bool:
        return any(fnmatch.fnmatchcase(name, g.strip()) for g in globs.split(";"))

    kinds = works(small=args.small) | WORKS
    return [
        (row, mode, kinds[letter])
        for row, mode, letters in EVERYTHING
        for letter in letters
        if chosen(row, args.rows) and chosen(mode, args.modes) and letter in args.operations
    ]  # fmt: skip


def name_of(row: str, mode: str, work: Work) -> str:
    """Return a row as a person reads it."""
    return f"{row}, {mode}, {work.kind} {work.batch}"


def one(
    bench: Bench,
    counted: Counted,
    todo: tuple[str, str, Work],
    meta: dict[str, Any],
    device: str,
) -> dict[str, Any]:
    """Measure one row; an error is part of the result."""
    row, mode, work = todo
    try:
        if row not in KERNELS:
            bench.model(row)
        began = time.perf_counter()
        rate = meta["rates"][MODES[mode].rate]
        found = measure(
            bench, counted, row, mode, work, device=device, rate=rate, small=meta["small"]
        )
        return found | {"spent_s": time.perf_counter() - began}
    except SkippedError as error:
        return {"error": str(error)}
    except Exception as error:  # a form, a peer or a full device: the run goes on
        last = (str(error).strip().splitlines() or [""])[0][:400]
        return {
            "error": f"{type(error).__name__}: {last}",
            "traceback": traceback.format_exc()[-2000:],
        }


def again(args: argparse.Namespace) -> None:
    """Go on in a new process, since the device answers this one no more."""
    more = ["--end", str(args.end), "--began", str(args.began)]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.argv, *more])


def is_done(known: dict[str, Any] | None, args: argparse.Namespace) -> bool:
    """Return whether a row need not be measured in this run."""
    if known is None:
        return False
    if known.get("session") == args.began:
        return True
    names = (
        known["row"],
        f"{known['row']}, {known['mode']}, {known['operation']}".replace("_", " "),
    )

    def chosen(globs: str) -> bool:
        return any(fnmatch.fnmatchcase(n, g.strip()) for n in names for g in globs.split(";"))

    anew = chosen(args.again) or (chosen(args.older) and known.get("commit") != commit())
    return "error" not in known and not anew


def run(args: argparse.Namespace, results: Results, watchdog: Watchdog) -> None:
    """Measure the rows that are missing, in order, while there is time."""
    meta, started = results.data["meta"], time.time()
    device = meta["device"]
    meta["rates"] = rates(device, small=args.small)
    options = Options(
        config="256", ngf=args.ngf, init="svd", calibrate=0, folder=args.out.parent,
        threads=torch.get_num_threads(), device=device,
    )  # fmt: skip
    bench = Bench(options)
    counted, clock = Counted(bench), Clock(args.end - GRACE, bench, results)
    left = [t for t in wanted(args) if not is_done(results.find(t[0], t[1], t[2].name), args)]
    meta["missing"] = [name_of(*todo) for todo in left]
    results.write()
    for todo in tuple(left):
        row, mode, work = todo
        if clock.estimate(row, mode, work) > clock.left:
            continue
        about = {"row": row, "mode": mode, "operation": work.name, "batch": work.batch}
        watchdog.row = about
        found = about | one(bench, counted, todo, meta, device)
        watchdog.row = None
        found |= {"session": args.began, "commit": commit()}
        for source in bench.notes.keys() & ({row} if row in KERNELS else {bench.source(row), row}):
            found["note"] = bench.notes[source]
        left.remove(todo)
        meta["missing"] = [name_of(*other) for other in left]
        results.put(found)
        said = found.get("error") or f"{1000 * found['median_s']:.3g} ms"
        print(f"{time.time() - started:6.1f} s  {name_of(*todo)}: {said}", flush=True)
        if broken(device):
            again(args)
        release(device)
    made = len(results.data["rows"])
    print(f"{made} rows in {results.path}, {len(left)} left for another run")


def main() -> None:
    """Measure in the time that is given."""
    args = parse()
    meta = meta_of(args, settle(Settings(device=args.device)).device)
    print(f"{meta['machine']}, driver {meta['driver']}, torch {meta['torch']}, commit {commit()}")
    results = Results(
        args.out.with_suffix(".json"),
        meta,
        same=("machine", "torch", "ngf", "small", "device"),
        names=("row", "mode", "operation"),
        order=order_of,
        markdown=markdown,
    )
    with warnings.catch_warnings(), Watchdog(args.end, results) as watchdog:
        warnings.simplefilter("ignore")  # of peers, in pages
        try:
            run(args, results, watchdog)
        except KeyboardInterrupt:  # also what gpu_visit.sh sends where the end comes too late
            watchdog.note("interrupted")
    if code := verdict(results):
        sys.exit(code)


if __name__ == "__main__":
    main()
