"""Time and peak memory on a file as users have it: plain ``pickle.load`` against dsconvert's.

    python benchmarks/make_official_file.py --repo ~/projected-gan --timm ~/timm04 --out big.pkl
    python benchmarks/large_file.py big.pkl --repo ~/projected-gan --timm ~/timm04

Each step runs in a process of its own, alternately, so that imports and peaks don't mix; prints
one JSON object. Seconds are medians of wall-clock times without imports; peaks are the process's
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

CONVERSIONS = ("exact", "paper", "balanced", "fast")
STEPS = ("imports", "pickle", "load", "load_save", "inspect", *CONVERSIONS)
"""``imports`` does nothing: its peak is what torch and the adapters take by themselves. A preset's
name is the whole conversion by it with ``init="svd", calibrate=0``: load, plan, rewrite G_ema and
G, count, save."""


def step(name: str, path: Path, repo: Path | None, timm: Path | None) -> dict[str, float]:
    """One step, in this process."""
    sys.path[:0] = [str(p) for p in (timm, repo) if p is not None]
    import torch  # noqa: F401 - imports are not timed

    if name == "pickle":
        import pickle

        import pg_modules.discriminator
        import pg_modules.networks_fastgan  # noqa: F401

        started = time.perf_counter()
        with path.open("rb") as file:
            data = pickle.load(file)
        seconds = time.perf_counter() - started
        assert data["G_ema"] is not None
    else:
        from dsconvert.adapter import adapters
        from dsconvert.formats.convert_file import convert_file
        from dsconvert.formats.official import inspect_snapshot, load_snapshot, save_snapshot

        adapters()  # imports the adapters
        started = time.perf_counter()
        if name == "inspect":
            inspect_snapshot(path)
        elif name in CONVERSIONS:
            snap = load_snapshot(path)
            result = convert_file(snap, preset=name, init="svd", calibrate=0)
            save_snapshot(snap, result.models, path.with_suffix(".out"), overwrite=True)
        elif name != "imports":
            snap = load_snapshot(path)
            modules = {"G": snap.module("G"), "G_ema": snap.generator}
            if name == "load_save":
                save_snapshot(snap, modules, path.with_suffix(".out"), overwrite=True)
        seconds = time.perf_counter() - started
        path.with_suffix(".out").unlink(missing_ok=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": round(seconds, 3), "peak_mib": round(peak)}


def main() -> None:
    """Parse the command line, run every step several times, print JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--repo", type=Path)
    parser.add_argument("--timm", type=Path)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        print(json.dumps(step(args.step, args.file, args.repo, args.timm)))
        return
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in STEPS}
    for _ in range(args.repeat):
        for name in STEPS:
            done = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--step", name],
                check=True,
                capture_output=True,
                text=True,
            )
            runs[name].append(json.loads(done.stdout.splitlines()[-1]))
    table = {
        name: {
            "seconds": statistics.median(r["seconds"] for r in each),
            "peak_mib": max(r["peak_mib"] for r in each),
        }
        for name, each in runs.items()
    }
    base = table["pickle"]["seconds"]
    for row in table.values():
        row["ratio_to_pickle"] = round(row["seconds"] / base, 2)
    print(json.dumps({"file": str(args.file), "bytes": args.file.stat().st_size, **table}))


if __name__ == "__main__":
    main()
