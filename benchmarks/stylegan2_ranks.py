"""What each rank costs in StyleGAN2: parameters, MACs, and seconds beside the official code.

    python benchmarks/stylegan2_ranks.py [--ranks 1-4] [--threads 2] [--repeats 9]
        [--official CHECKOUT] [--out FILE.json]

An untrained generator with the official defaults (256 px, channel_base 32768, channel_max 512),
batch 1, `noise_mode="const"`. All models are timed in turn, round by round, so that drift meets all
alike; medians and minima are reported. ``--official`` names a checkout of Projected GAN or of
StyleGAN3, whose own class is then timed too.
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


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", default="1-4")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--channel-base", type=int, default=32768)
    parser.add_argument("--official", metavar="CHECKOUT")
    parser.add_argument("--out", metavar="FILE.json")
    options = parser.parse_args()
    low, _, high = options.ranks.partition("-")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    dense = Generator(img_resolution=256, channel_base=options.channel_base).eval()
    dense.requires_grad_(False)
    models: dict[str, nn.Module] = {"dense": dense}
    before = cost(dense)
    costs: dict[str, Any] = {"dense": (before.params, before.macs)}
    for rank in range(int(low), int(high or low) + 1):
        made = apply(dense, plan(dense, preset="fast", rank=rank), init="svd", calibrate=0)
        models[f"rank {rank}"] = made.model
        costs[f"rank {rank}"] = (made.after.params, made.after.macs)
    if options.official:
        models["official"] = official(options.official, {"channel_base": options.channel_base})
    times: dict[str, list[float]] = {name: [] for name in models}
    z, c = torch.randn(1, 512), torch.zeros(1, 0)
    with torch.inference_mode():
        for _ in range(options.repeats + 1):
            for name, model in models.items():
                began = time.perf_counter()
                model(z, c, noise_mode="const")
                times[name].append(time.perf_counter() - began)
    rows = []
    for name, seconds in times.items():
        kept = sorted(seconds[1:])  # the first round warms up
        params, macs = costs.get(name, (None, None))
        rows.append({
            "model": name, "parameters": params, "macs": macs,
            "median_s": kept[len(kept) // 2], "min_s": kept[0],
        })  # fmt: skip
    slowest = next((r for r in rows if r["model"] == "official"), rows[0])
    for row in rows:
        row["times_faster"] = slowest["median_s"] / row["median_s"]
        macs = ""
        if row["macs"] and before.macs:
            macs = f"{row['macs'] / 1e9:6.2f} GMAC {before.macs / row['macs']:5.2f}x"
        faster = f"{row['times_faster']:.2f}x faster than {slowest['model']}"
        print(f"{row['model']:9} {macs:20} {row['median_s']:7.3f} s, {faster}")
    facts = {
        "channel_base": options.channel_base, "threads": options.threads, "batch": 1,
        "repeats": options.repeats, "torch": torch.__version__, "processor": platform.processor(),
        "load_average": os.getloadavg()[0], "rows": rows,
    }  # fmt: skip
    if options.out:
        Path(options.out).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
