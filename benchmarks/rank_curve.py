"""MACs against image quality for every rank and order: what the presets are chosen from.

    python benchmarks/rank_curve.py SNAPSHOT [--ranks 1-9] [--calibrate 256] [--out FOLDER]

Fits, without data and without training, every 3x3 block convolution of a snapshot's G_ema at one
rank in three forms (dw -> pw; pw -> dw; pointwise at the low resolution behind upsamples, dw -> pw
elsewhere), then the presets. Results are written after every row, so a run can be cut short and is
resumed.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import torch

from dsconvert import apply, load_snapshot, plan
from dsconvert.core.pipeline import sampler_of
from dsconvert.data.pictures import grid, save_png
from dsconvert.metrics import LiteFeatures, compare_features, frechet_distance, sample_images
from dsconvert.model.sites import find_sites
from dsconvert.records import Plan
from dsconvert.rules import rule_named

SAMPLES = 400
FORMS = ("dw-pw", "pw-dw", "upsample-aware")


def at_rank(base: Plan, sites: dict, form: str, rank: int) -> Plan:
    """The paper's choice of convolutions, in one form at one rank, norms folded."""
    decisions = []
    for d in base.decisions:
        if d.action != "rewrite":
            decisions.append(replace(d, norm="fold"))
            continue
        site = sites[d.site]
        name = form if form != "upsample-aware" else "dw-pw"
        if form == "upsample-aware" and rule_named("up-pw-dw").why_not(site) is None:
            name = "up-pw-dw"
        rule = rule_named(name)
        r = min(rank, rule.max_rank(site))
        decisions.append(
            replace(
                d,
                rule=name,
                rank=r,
                norm="fold",
                params_after=rule.params(site, r),
                macs_after=rule.macs(site, r),
            )
        )
    return replace(base, preset=f"{form} rank {rank}", decisions=tuple(decisions))


def table(rows: list[dict], floor: float, meta: dict) -> str:
    """The rows as markdown."""
    lines = [
        f"# Rank against quality, no training: {meta['snapshot']}",
        "",
        f"FD-lite0 over {SAMPLES} images a side (EfficientNet-Lite0 features; not FID). Floor, the "
        f"teacher against itself with other latents: {floor:.1f}. PSNR and 'same latents' are to "
        f"the teacher with the same latents and noise. {meta['calibrate']} latents for the fit; "
        f"{meta['machine']}; torch {meta['torch']}; {meta['date']}. Seconds are wall clock on a "
        "machine that was doing other work too.",
        "",
        "| form | MACs (M) | fewer | parameters (M) | PSNR dB | FD same latents | FD other latents "
        "| x floor | excess, 95 % interval | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['name']} | {r['macs'] / 1e6:.0f} | {r['ratio']:.2f}x | {r['params'] / 1e6:.2f} "
        f"| {r['psnr']:.2f} | {r['same']:.1f} | {r['value']:.1f} | {r['value'] / floor:.2f} "
        f"| {r['low']:.1f} to {r['high']:.1f} | {r['seconds']:.0f} |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("snapshot")
    parser.add_argument("--ranks", default="1-9")
    parser.add_argument("--calibrate", type=int, default=256)
    parser.add_argument("--out", default="benchmarks/results")
    options = parser.parse_args()
    low, _, high = options.ranks.partition("-")
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    state = out / "rank_curve.json"
    teacher = load_snapshot(options.snapshot).generator
    sampler = sampler_of(teacher)
    net = LiteFeatures()
    ours = sample_images(teacher, sampler, samples=SAMPLES, seed=1)
    f_ours = net(ours)
    f_other = net(sample_images(teacher, sampler, samples=SAMPLES, seed=2))
    floor = frechet_distance(f_ours, f_other)
    meta = {
        "snapshot": Path(options.snapshot).name,
        "calibrate": options.calibrate,
        "machine": f"{os.cpu_count()} CPU cores, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "floor": floor,
    }
    rows: list[dict] = json.loads(state.read_text())["rows"] if state.exists() else []
    base = plan(teacher, preset="paper")
    found, _ = find_sites(teacher, example_inputs=sampler(1, torch.Generator()))
    sites = {s.name: s for s in found.convolutions}
    jobs = [(p, plan(teacher, preset=p)) for p in ("exact", "paper", "balanced", "fast")]
    jobs += [
        (f"{form} rank {rank}", at_rank(base, sites, form, rank))
        for rank in range(int(low), int(high or low) + 1)
        for form in FORMS
    ]
    for name, job in jobs:
        if any(r["name"] == name for r in rows):
            continue
        began = time.perf_counter()
        result = apply(teacher, job, calibrate=options.calibrate)
        seconds = time.perf_counter() - began
        images = sample_images(result.model, sampler, samples=SAMPLES, seed=1)
        mine = net(images)
        value, _, (below, above) = compare_features(mine, f_ours, f_other, bootstrap=50)
        error = float((images - ours).square().mean())
        rows.append(
            {
                "name": name,
                "macs": result.after.macs,
                "ratio": result.before.macs / result.after.macs,
                "params": result.after.params,
                "psnr": float(10 * torch.log10(torch.tensor(4 / max(error, 1e-12)))),
                "same": frechet_distance(mine, f_ours),
                "value": value,
                "low": below,
                "high": above,
                "seconds": seconds,
                "fits": [vars(f) for f in result.fits],
            }
        )
        print(rows[-1]["name"], {k: v for k, v in rows[-1].items() if k != "fits"}, flush=True)
        state.write_text(json.dumps({"meta": meta, "rows": rows}, indent=1))
        (out / "rank_curve.md").write_text(table(rows, floor, meta))
        save_png(
            grid(torch.cat([ours[:8], images[:8]]), columns=8),
            out / f"{name.replace(' ', '-')}.png",
            overwrite=True,
        )


if __name__ == "__main__":
    main()
