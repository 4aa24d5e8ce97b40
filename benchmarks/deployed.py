r"""Plans at full and half width, plain and deployed, beside the official generator.

    python benchmarks/deployed.py --out benchmarks/results/deployed.json
    python benchmarks/deployed.py --keep-freed --out benchmarks/results/deployed_kept.json
    python benchmarks/deployed.py --ngf 16 --repeats 3     # small: does it work?

Random weights, factors from the SVD: only times and memory are measured. A generator with half of
the ngf stands in for half width. One process a row, runs interleaved (``dsconvert.bench``); each
row is followed by how many times faster than the official one it is.
"""

from __future__ import annotations

import argparse
import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from dsconvert_adapters.projected_gan import Generator
from torch import nn

import dsconvert
from dsconvert.bench import Operation, Settings, compare, facts, remote, settle
from dsconvert.core.pipeline import sampler_of

ROWS = ("balanced", "balanced, deployed", "fast, deployed")
WIDTHS = {"": 1, "half width, ": 2}


def official(ngf: int) -> nn.Module:
    """Return the official architecture at 256 px with noise that is not zero."""
    torch.manual_seed(0)
    made = Generator.from_config(cfg="fastgan", resolution=256, ngf=ngf)
    for module in made.modules():
        if type(module).__name__ == "NoiseInjection":
            nn.init.constant_(module.weight, 0.1)  # type: ignore[arg-type]
    return made.eval().requires_grad_(False)


def rows(ngf: int) -> dict[str, nn.Module]:
    """Return the models by name."""
    found: dict[str, nn.Module] = {"official": official(ngf)}
    for width, divisor in WIDTHS.items():
        dense = official(ngf // divisor)
        if divisor > 1:
            found[f"{width}dense, deployed"] = dsconvert.deploy(dense)
        made: dict[str, nn.Module] = {}
        for row in ROWS:
            preset, _, form = row.partition(", ")
            if preset not in made:
                plan = dsconvert.plan(dense, preset=preset)
                made[preset] = dsconvert.apply(dense, plan, init="svd", calibrate=0).model.eval()
            model = made[preset]
            found[width + row] = dsconvert.deploy(model) if form else model
    return found


def main() -> None:
    """Measure, print, and write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ngf", type=int, default=128)
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--keep-freed", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
    settings = settle(Settings(device="cpu", threads=args.threads, keep_freed=args.keep_freed))
    models = rows(args.ngf)
    operations = [Operation(kind="forward", batch=int(n)) for n in args.batches.split(",")]
    with ExitStack() as stack:
        subjects = []
        for name, model in models.items():
            subjects.append(remote(name, model, sampler_of(models["official"]), settings))
            stack.callback(subjects[-1].close)
        found = compare(subjects, operations, repeats=args.repeats)
    data: dict[str, Any] = {
        "facts": facts(settings), "ngf": args.ngf, "keep_freed": args.keep_freed,
        "load_average_after": os.getloadavg(), "rows": [],
    }  # fmt: skip
    for row in found:
        for operation in operations:
            seconds, peak = row.times[operation].median, row.peaks[operation]
            ratio = found[0].times[operation].median / seconds
            data["rows"].append(
                {"name": row.name, "batch": operation.batch, "seconds": seconds,
                 "times_faster": ratio, "peak_bytes": peak}
            )  # fmt: skip
            mib = "-" if peak is None else f"{peak / 2**20:.0f}"
            print(f"{row.name:32} {operation} {seconds:8.3f} s {ratio:5.1f}x, peak {mib} MiB")
    if args.out is not None:
        args.out.write_text(json.dumps(data, indent=1))


if __name__ == "__main__":
    main()
