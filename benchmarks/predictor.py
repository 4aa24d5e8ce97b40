"""How well a predicted loss ranks plans of equal MACs, before any of them is fitted.

    python benchmarks/predictor.py SNAPSHOT [--plans 40] [--fewer 8] [--calibrate 96]

Random plans (a rank for every convolution, a width for every group of maps) whose MACs differ by at
most 5 % from the original's divided by --fewer, so by at most 10 % from one another. Each is fitted
and measured: FD-lite0 beside its noise floor, and PSNR, on latents that no fit saw. The table has
Spearman's rank correlation of each figure with these: the predicted losses of
`dsconvert.search.predictor`, the MACs, the sum of the kernels' residuals (with the losses of
narrower maps), and the sum of the layers' errors after the fit (which needs the fit). Results are
written after every plan; a run can be cut short and is resumed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dsconvert import load_generator
from dsconvert.core.analysis import Analysis, analyse
from dsconvert.core.conversion import apply_to
from dsconvert.core.pipeline import costed_for, plan_for
from dsconvert.formats.registry import open_file
from dsconvert.metrics import LiteFeatures
from dsconvert.metrics.quality import SEEDS, Judge
from dsconvert.model.inputs import held_out_inputs
from dsconvert.records import Plan, Width
from dsconvert.search.layer_trials import layer_trials
from dsconvert.search.predictor import predict_loss
from dsconvert.search.trial_rig import LayerTrials, Sensitivity, Trial

STATE = "predictor.json"
RANKS = (1, 2, 3, 4, 6)
SHARES = (0.35, 0.5, 0.65, 0.8, 1.0)
TOLERANCE = 0.05
FIGURES = {
    "predicted": "predicted: errors of rewritten layers, effects of narrower maps",
    "features": "predicted: effects on the features, one layer at a time",
    "image": "predicted: effects on the image, one layer at a time",
    "macs": "MACs",
    "residuals": "kernels' residuals and losses of narrower maps",
    "fitted": "errors of the layers after the fit",
}


def macs_of(plan: Plan) -> float:
    """Return the MACs of the plan's convolutions."""
    return float(sum(d.macs_after or 0 for d in plan.decisions))


def random_plan(analysis: Analysis, base: Plan, target: float, seed: int) -> Plan | None:
    """Return a random plan of about ``target`` MACs; None where the walk ends elsewhere.

    A start is drawn for every dial; then random dials are moved one step towards the target.
    """
    rng = random.Random(seed)
    sites = [d.site for d in base.decisions if d.action == "rewrite"]
    groups = [g for g in analysis.groups.free() if g.channels >= 8]
    rank = {s: rng.randrange(len(RANKS) + 1) for s in sites}  # the last one: not rewritten
    share = {g.name: rng.randrange(len(SHARES)) for g in groups}

    def made() -> Plan:
        decisions = tuple(
            d
            if d.site not in rank
            else replace(d, action="keep", rule=None, rank=None)
            if rank[d.site] == len(RANKS)
            else replace(d, rank=RANKS[rank[d.site]])
            for d in base.decisions
        )
        widths = tuple(
            Width(
                group=g.name,
                channels=g.channels,
                kept=max(8, round(g.channels * SHARES[share[g.name]] / 4) * 4),
                reason="random",
            )
            for g in groups
            if SHARES[share[g.name]] < 1
        )
        widths = tuple(w for w in widths if w.kept < w.channels)
        return costed_for(analysis, replace(base, decisions=decisions, widths=widths))

    for _ in range(200):
        plan = made()
        cost = macs_of(plan)
        if abs(cost / target - 1) <= TOLERANCE:
            return plan
        step = 1 if cost < target else -1
        dials: list[tuple[dict[str, int], str, int]] = [(rank, s, len(RANKS)) for s in sites]
        dials += [(share, g.name, len(SHARES) - 1) for g in groups]
        able = [(d, n, top) for d, n, top in dials if 0 <= d[n] + step <= top]
        if not able:
            return None
        table, name, _ = rng.choice(able)
        table[name] += step
    return None


def spearman(a: list[float], b: list[float]) -> float:
    """Return the rank correlation; ties have the mean of their ranks."""

    def ranks(values: list[float]) -> np.ndarray:
        x = np.array(values)
        return np.array([((x < v).sum() + (x <= v).sum() - 1) / 2 for v in x])

    x, y = ranks(a), ranks(b)
    if x.std() == 0 or y.std() == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def interval(a: list[float], b: list[float], draws: int = 500) -> tuple[float, float]:
    """Return the 95 % interval of the rank correlation, by a bootstrap over plans."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(draws):
        rows = rng.integers(0, len(a), len(a))
        found.append(spearman([a[i] for i in rows], [b[i] for i in rows]))
    low, high = np.nanpercentile(found, [2.5, 97.5])
    return float(low), float(high)


def restored(data: dict[str, Any]) -> Sensitivity:
    """Return the trials from their JSON."""
    layers = tuple(
        LayerTrials(**{**row, "trials": tuple(Trial(**t) for t in row["trials"])})
        for row in data["layers"]
    )
    return Sensitivity(layers=layers, latents=data["latents"], power=data["power"])


def row(
    analysis: Analysis, plan: Plan, known: Sensitivity, judge: Judge, options: Any, shown: Any
) -> dict[str, Any]:
    """Fit one plan and measure it."""
    began = time.process_time()
    made = apply_to(analysis, plan, calibrate=options.calibrate)
    seconds = time.process_time() - began
    quality = judge.measure(shown(made.model))
    curves = analysis.curves(0).by_group
    narrower = sum(curves[w.group].loss[w.kept] for w in plan.widths if w.group in curves)
    predicted = predict_loss(plan, known)
    errors = [f.fitted if f.fitted is not None else f.svd or 0.0 for f in made.fits]
    return {
        "macs": macs_of(plan),
        "predicted": predicted.fitted,
        "image": predicted.image,
        "features": predicted.features,
        "residuals": sum(f.residual or 0.0 for f in made.fits) + narrower,
        "fitted": sum(errors) + narrower,
        "psnr": quality.psnr,
        "fd": quality.fd,
        "ratio": quality.ratio,
        "cpu_seconds": seconds,
    }


def table(state: dict[str, Any]) -> str:
    """The sections as markdown."""
    lines = [
        "# Predicted loss against measured quality, at equal MACs",
        "",
        "Made by `python benchmarks/predictor.py SNAPSHOT`. Random plans whose MACs differ by at "
        "most 10 %; Spearman's rank correlation (95 % interval, bootstrap over plans) with the "
        "quality after the fit, without polish, on latents that no fit saw. A sign is turned so "
        "that 1 is perfect.",
    ]
    for teacher, section in state.items():
        rows, meta = section["rows"], section["meta"]
        lines += [
            "",
            f"## {teacher}",
            "",
            f"{len(rows)} plans of 1/{meta['fewer']:g} of the MACs (of the convolutions), "
            f"{meta['calibrate']} latents for the fit, {meta['samples']} images a side; trials on "
            f"{section['trials']['latents']} latents, {meta['trials_seconds']:.0f} s of CPU time; "
            f"{meta['machine']}; torch {meta['torch']}; {meta['date']}.",
        ]
        if len(rows) < 3:
            continue
        psnr, fd = [r["psnr"] for r in rows], [r["fd"] for r in rows]
        lines += [
            "",
            f"PSNR {min(psnr):.1f} to {max(psnr):.1f} dB; FD-lite0 "
            f"{min(r['ratio'] for r in rows):.2f}x to {max(r['ratio'] for r in rows):.2f}x of its "
            "noise floor.",
            "",
            "| figure | with PSNR | with FD-lite0 |",
            "|---|---|---|",
        ]
        for key, name in FIGURES.items():
            values = [r[key] for r in rows]
            cells = []
            for got, sign in ((psnr, -1.0), (fd, 1.0)):
                turned = [sign * v for v in got]
                low, high = interval(values, turned)
                cells.append(f"{spearman(values, turned):.2f} ({low:.2f} to {high:.2f})")
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the missing plans and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("snapshot")
    parser.add_argument("--plans", type=int, default=40)
    parser.add_argument("--fewer", type=float, default=8.0)
    parser.add_argument("--calibrate", type=int, default=96)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--latents", type=int, default=8)
    parser.add_argument("--first-seed", type=int, default=0, help="of the first plan")
    parser.add_argument("--out", default="benchmarks/results")
    options = parser.parse_args()
    out = Path(options.out)
    path = out / STATE
    state: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    file = open_file(options.snapshot)
    teacher = load_generator(options.snapshot).eval()
    inputs = file.inputs()
    if inputs is None:
        raise SystemExit(f"nothing says what the inputs of {options.snapshot} look like")
    analysis = analyse(teacher, inputs=inputs, adapter=file.adapter)
    net = LiteFeatures()
    section = state.setdefault(Path(options.snapshot).stem, {"rows": [], "trials": None})

    def save() -> None:
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(state, indent=1))
        (out / "predictor.md").write_text(table(state))

    meta = section.setdefault("meta", {"trials_seconds": 0.0})
    for name in ("fewer", "calibrate", "samples"):
        if section["rows"] and meta[name] != getattr(options, name):
            raise SystemExit(
                f"{path} has plans made with --{name} {meta[name]}; give that, or another --out"
            )
    meta.update(
        fewer=options.fewer,
        calibrate=options.calibrate,
        samples=options.samples,
        machine=f"{os.cpu_count()} CPU cores, {torch.get_num_threads()} threads",
        torch=torch.__version__,
        date=time.strftime("%Y-%m-%d"),
    )
    if section["trials"] is None:
        began = time.process_time()
        found = layer_trials(
            analysis, picture=file.picture, features=net, latents=options.latents,
            progress=lambda _, done, total, name: print(f"{done}/{total} {name}", flush=True),
        )  # fmt: skip
        section["trials"] = asdict(found)
        section["meta"]["trials_seconds"] = time.process_time() - began
        save()
    known = restored(section["trials"])
    judge = Judge(
        file.picture(teacher), held_out_inputs(inputs), features=net, samples=options.samples,
        seed=SEEDS["search"],
    )  # fmt: skip
    base = plan_for(analysis, preset="balanced", rank=1, width=1.0)
    target = sum(d.macs_before or 0 for d in base.decisions) / options.fewer
    seed = max((r["seed"] for r in section["rows"]), default=options.first_seed - 1)
    while len(section["rows"]) < options.plans:
        seed += 1
        plan = random_plan(analysis, base, target, seed)
        if plan is None:
            continue
        found_row = {"seed": seed, **row(analysis, plan, known, judge, options, file.picture)}
        section["rows"].append(found_row)
        print(found_row, flush=True)
        save()
    save()


if __name__ == "__main__":
    main()
