"""Time and peak memory of the whole fit on a file as users have it (the official 1.7 GB one).

    python benchmarks/make_official_file.py --repo ~/projected-gan --timm ~/timm04 --out big.pkl
    python benchmarks/full_size_fit.py big.pkl [--preset balanced ...] [--out FILE]

Every preset converts ``G_ema`` with the default latents in a process of its own, so that peaks
don't mix. The weights of such a file are untrained: this is a measurement of cost, not of quality.
Results are written after every preset.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

DEFAULT = Path(__file__).parent / "results" / "full_size_fit.json"


def one(path: Path, preset: str) -> dict[str, object]:
    """Convert in this process."""
    import torch

    from dsconvert import apply, load_snapshot, plan

    snap = load_snapshot(path)
    model = snap.generator
    began = time.perf_counter()
    done = apply(model, plan(model, preset=preset))
    seconds = time.perf_counter() - began
    return {
        "preset": preset,
        "seconds": round(seconds, 1),
        "stages": {k: round(v, 1) for k, v in done.seconds.items()},
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
        "params": [done.before.params, done.after.params],
        "macs": [done.before.macs, done.after.macs],
        "slowest_layers": {
            f.site: round(f.seconds, 1) for f in sorted(done.fits, key=lambda f: -f.seconds)[:4]
        },
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def main() -> None:
    """Parse the command line, run each preset, write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--preset", action="append", choices=("paper", "balanced", "fast"))
    parser.add_argument("--out", type=Path, default=DEFAULT)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(one(args.file, args.child)))
        return
    rows: list[dict[str, object]] = []
    for preset in args.preset or ["balanced"]:
        load = os.getloadavg()[0]
        done = subprocess.run(
            [sys.executable, __file__, str(args.file), "--child", preset],
            check=True,
            capture_output=True,
            text=True,
        )
        row = json.loads(done.stdout.splitlines()[-1])
        rows.append({**row, "load_before": round(load, 1), "date": time.strftime("%Y-%m-%d")})
        print(json.dumps(rows[-1]), flush=True)
        args.out.write_text(
            json.dumps(
                {"file_bytes": args.file.stat().st_size, "cores": os.cpu_count(), "rows": rows},
                indent=1,
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
