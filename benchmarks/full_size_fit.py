"""Time and peak memory of the whole fit on a file as users have it (the official 1.7 GB one).

    python benchmarks/make_official_file.py --repo ~/projected-gan --timm ~/timm04 --out big.pkl
    python benchmarks/full_size_fit.py big.pkl [--preset balanced ...] [--out FILE]
    python benchmarks/full_size_fit.py new --device cuda --out FILE

``new`` stands for the official generator (256 px, ngf 128) made here, for machines that don't have
the file. Every preset converts ``G_ema`` with the default latents in a process of its own, so that
don't mix. The weights are untrained: this measures cost, not quality.
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
from typing import Any

DEFAULT = Path(__file__).parent / "results" / "full_size_fit.json"


def generator_of(file: str, ngf: int) -> Any:
    """Return the generator of a file, or a new one; the same weights on every device."""
    from peer_rows import Options, official

    from dsconvert import load_snapshot

    if file != "new":
        return load_snapshot(Path(file)).generator
    return official(
        Options(
            config="256", ngf=ngf, init="svd", calibrate=0, folder=Path(), threads=1, device="cpu"
        )
    )


class Stages:
    """Says on stderr when a stage of a conversion began, and every five seconds how far it is."""

    def __init__(self) -> None:
        self._began = self._said = time.perf_counter()
        self._stage = ""

    def __call__(self, stage: str, done: int, total: int, detail: str = "") -> None:  # noqa: ARG002
        """Take the state of the work."""
        now = time.perf_counter()
        if stage != self._stage or now - self._said > 5:
            text = f"{now - self._began:6.1f} s  {stage}: {done} of {total}"
            print(text, file=sys.stderr, flush=True)
            self._stage, self._said = stage, now


def one(file: str, preset: str, device: str, ngf: int) -> dict[str, object]:
    """Convert in this process."""
    import torch

    from dsconvert import apply, plan

    model = generator_of(file, ngf).to(device)
    if device != "cpu":
        torch.zeros(1, device=device)  # the start of CUDA is no part of the fit
        torch.cuda.synchronize()
    began = time.perf_counter()
    done = apply(model, plan(model, preset=preset), progress=Stages())
    if device != "cpu":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    on_card = torch.cuda.max_memory_allocated() if device != "cpu" else None
    return {
        "preset": preset,
        "device": torch.cuda.get_device_name() if device != "cpu" else "cpu",
        "seconds": round(seconds, 1),
        "stages": {k: round(v, 1) for k, v in done.seconds.items()},
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
        "peak_gb_on_card": None if on_card is None else round(on_card / 1e9, 2),
        "held_out_errors": {f.site: f.fitted for f in done.fits},
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
    parser.add_argument("file", help="a snapshot, or: new")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--ngf", type=int, default=128, help="of a new generator")
    parser.add_argument("--preset", action="append", choices=("paper", "balanced", "fast"))
    parser.add_argument("--out", type=Path, default=DEFAULT)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if args.child:
        print(json.dumps(one(args.file, args.child, args.device, args.ngf)))
        return
    rows: list[dict[str, object]] = []
    size = None if args.file == "new" else Path(args.file).stat().st_size
    for preset in args.preset or ["balanced"]:
        load = os.getloadavg()[0]
        done = subprocess.run(
            [
                *(sys.executable, __file__, args.file, "--child", preset),
                *("--device", args.device, "--ngf", str(args.ngf)),
            ],
            check=True,
            stdout=subprocess.PIPE,  # stderr says how far it is, also where the time ends first
            text=True,
        )
        row = json.loads(done.stdout.splitlines()[-1])
        rows.append({**row, "load_before": round(load, 1), "date": time.strftime("%Y-%m-%d")})
        print(json.dumps(rows[-1]), flush=True)
        args.out.write_text(
            json.dumps(
                {"file_bytes": size, "cores": os.cpu_count(), "rows": rows},
                indent=1,
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
