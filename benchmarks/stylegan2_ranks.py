"""What each rank costs in StyleGAN2: parameters, MACs, and seconds beside the official code.

    python benchmarks/stylegan2_ranks.py --count-only [--ranks 1-8] [--out FILE.json]
    python benchmarks/stylegan2_ranks.py [--ranks 1-4] [--threads 2] [--repeats 9]
        [--official CHECKOUT] [--out FILE.json]

An untrained generator with the official defaults (256 px, channel_base 32768, channel_max 512),
batch 1, `noise_mode="const"`. ``--count-only`` counts and times nothing. Otherwise all models are
timed in turn, round by round, so that drift meets all alike; medians and minima are reported.
``--official`` names a checkout of Projected GAN or of StyleGAN3, whose own class is then timed too.

The file holds "counts" (of ``--count-only``) and "times", each with its own facts; a run replaces
its own part and leaves the other.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch
from dsconvert_adapters.stylegan2 import Generator
from torch import nn

from dsconvert import apply, cost, plan


def official(root: str, options: dict[str, int]) -> nn.Module:
    """The checkout's own generator."""
    sys.path.insert(0, root)
    inside = Path(root) / "pg_modules"
    module = "pg_modules.networks_stylegan2" if inside.is_dir() else "training.networks_stylegan2"
    made: Any = importlib.import_module(module).Generator(512, 0, 512, 256, 3, **options)
    return made.eval().requires_grad_(False)


def timed(
    models: dict[str, nn.Module], counts: list[dict[str, Any]], repeats: int
) -> list[dict[str, Any]]:
    """Medians and minima, the models in turn."""
    times: dict[str, list[float]] = {name: [] for name in models}
    z, c = torch.randn(1, 512), torch.zeros(1, 0)
    with torch.inference_mode():
        for _ in range(repeats + 1):
            for name, model in models.items():
                began = time.perf_counter()
                model(z, c, noise_mode="const")
                times[name].append(time.perf_counter() - began)
    known = {r["model"]: r for r in counts}
    rows = []
    for name, seconds in times.items():
        kept = sorted(seconds[1:])  # the first round warms up
        rows.append({
            **known.get(name, {"model": name, "parameters": None, "macs": None}),
            "median_s": kept[len(kept) // 2], "min_s": kept[0],
        })  # fmt: skip
    slowest = next((r for r in rows if r["model"] == "official"), rows[0])
    for row in rows:
        row["times_faster"] = slowest["median_s"] / row["median_s"]
        faster = f"{row['times_faster']:.2f}x faster than {slowest['model']}"
        print(f"{row['model']:9} {row['median_s']:7.3f} s, {faster}")
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", help="default 1-4; 1-8 with --count-only")
    parser.add_argument("--count-only", action="store_true", help="parameters and MACs, no timing")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--channel-base", type=int, default=32768)
    parser.add_argument("--official", metavar="CHECKOUT")
    parser.add_argument("--out", metavar="FILE.json")
    options = parser.parse_args()
    if options.out:
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    low, _, high = (options.ranks or ("1-8" if options.count_only else "1-4")).partition("-")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    dense = Generator(img_resolution=256, channel_base=options.channel_base).eval()
    dense.requires_grad_(False)
    models: dict[str, nn.Module] = {"dense": dense}
    before = cost(dense)
    counts: list[dict[str, Any]] = [
        {"model": "dense", "parameters": before.params, "macs": before.macs}
    ]
    for rank in range(int(low), int(high or low) + 1):
        made = apply(dense, plan(dense, preset="fast", rank=rank), init="svd", calibrate=0)
        counts.append({
            "model": f"rank {rank}", "parameters": made.after.params, "macs": made.after.macs,
        })  # fmt: skip
        if not options.count_only:
            models[f"rank {rank}"] = made.model
    for row in counts:
        fewer = f"{before.macs / row['macs']:5.2f}x" if before.macs and row["macs"] else "?"
        print(f"{row['model']:9} {row['parameters'] / 1e6:6.2f} M {(row['macs'] or 0) / 1e9:6.2f} "
              f"GMAC {fewer}")  # fmt: skip
    facts: dict[str, Any] = {
        "channel_base": options.channel_base, "batch": 1, "torch": torch.__version__,
    }  # fmt: skip
    if options.count_only:
        name, rows = "counts", counts
    else:
        if options.official:
            models["official"] = official(options.official, {"channel_base": options.channel_base})
        name, rows = "times", timed(models, counts, options.repeats)
        facts |= {
            "threads": options.threads, "repeats": options.repeats,
            "processor": platform.processor(), "load_average": os.getloadavg()[0],
        }  # fmt: skip
    if options.out:
        path = Path(options.out)
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        kept[name] = {**facts, "rows": rows}
        path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
