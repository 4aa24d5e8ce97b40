"""MACs and measured time against quality, ours beside other compressions, on trained generators.

    python benchmarks/quality_curves.py SNAPSHOT [more] [--forms balanced:1,...] [--polish 3]

A form is PRESET:WIDTH of dsconvert. Beside each, at its MACs (or fewer), with the same teacher:

- SVD: the same plan from the kernels alone (full widths only: narrower maps need activations);
- fit: fitted to the teacher's activations, no training;
- polish: the fit and --polish minutes of training;
- Torch-Pruning: channels by group magnitude, batch statistics of the student's own, no training;
- Torch-Pruning, trained: by our distillation, in the minutes that our fit and polish took;
- BSConv-S, trained: the package's subspace variant from random weights, in the same minutes.

Minutes are those of the processor, all threads. Quality is FD-lite0 over 400 images a side, as a
multiple of the noise floor, and PSNR to the teacher with the same latents and noise. Times are
ratios of medians at batch 1 and 8, teacher and student alternating in one process, in plain form
and behind `dsconvert.deploy`. Results are written after every row; a run can be cut short and is
resumed. Needs: pip install bsconv torch-pruning
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from distillation_starts import bsconv_s, pruned, restated
from results_file import Results, Row
from torch import nn
from width import Judged, judge, machine, planned, quality, speedup

from dsconvert import Cost, apply, cost, deploy, load_snapshot
from dsconvert.distill import DistillConfig, distill
from dsconvert.errors import DsconvertError
from dsconvert.model.inputs import sampler_of
from dsconvert.report.curves import Curve, Panel, curves_svg
from dsconvert.util.allocator import keep_freed_memory
from dsconvert.util.files import whole_file

FORMS = "balanced:1,balanced:auto,fast:auto"
METHODS = (
    "SVD",
    "fit",
    "polish",
    "Torch-Pruning",
    "Torch-Pruning, trained",
    "BSConv-S, trained",
)


def timed(make: Callable[[], nn.Module]) -> tuple[nn.Module, float]:
    """Return the student, and the processor's minutes of making it."""
    began = time.process_time()
    return make(), (time.process_time() - began) / 60


def trained(teacher: nn.Module, student: nn.Module, minutes: float, *, own: bool) -> nn.Module:
    """Return the student after our distillation; ``own``: it has no statistics of its own yet."""
    config = DistillConfig(minutes=minutes, clock="cpu", statistics="batch" if own else "frozen")
    return distill(teacher, student, sampler_of(teacher), config=config).student


def students(
    teacher: nn.Module, form: str, *, calibrate: int, polish: float, minutes: Callable[[], float]
) -> dict[str, Callable[[], nn.Module]]:
    """Return what makes each student of ``form``; ``minutes``: our fit and polish took them."""
    made = planned(teacher, form)

    def ours(**settings: Any) -> Callable[[], nn.Module]:
        return lambda: apply(teacher, made, **settings).model

    @functools.cache
    def macs() -> int:
        after = apply(teacher, made, calibrate=4, polish=0).after.macs
        assert after is not None  # the teacher is one of ours
        return after

    def normalised(model: nn.Module) -> nn.Module:
        return restated(model, sampler_of(teacher))

    found = {
        "fit": ours(calibrate=calibrate, polish=0),
        "polish": ours(calibrate=calibrate, polish=polish),
        "Torch-Pruning": lambda: normalised(pruned(teacher, macs())),
        "Torch-Pruning, trained": lambda: trained(
            teacher, normalised(pruned(teacher, macs())), minutes(), own=False
        ),
        "BSConv-S, trained": lambda: trained(
            teacher, normalised(bsconv_s(teacher, macs())), minutes(), own=True
        ),
    }
    return found if made.widths else {"SVD": ours(init="svd", calibrate=0), **found}


def speeds(teacher: nn.Module, student: nn.Module) -> Iterator[tuple[str, float | None]]:
    """Yield how many times faster the student is; None where it can't be deployed."""
    sampler = sampler_of(teacher)
    try:
        deployed: nn.Module | None = deploy(student)
    except DsconvertError:
        deployed = None
    for batch, repeats in ((1, 15), (8, 7)):
        yield f"batch_{batch}", speedup(teacher, student, sampler, batch, repeats)
        both = deployed and speedup(teacher, deployed, sampler, batch, repeats)
        yield f"deployed_{batch}", both or None


def row(teacher: nn.Module, before: Cost, facts: Judged, make: Callable[[], nn.Module]) -> Row:
    """Make one student and measure it."""
    student, minutes = timed(make)
    after = cost(student)
    return {
        "fewer_macs": (before.macs or 0) / (after.macs or 1),
        "fewer_params": before.params / after.params,
        **quality(student, facts),
        **dict(speeds(teacher, student)),
        "minutes": minutes,
    }


def table(data: dict[str, Any]) -> str:
    """The rows as markdown, a section a teacher."""
    meta = data["meta"]
    lines = [
        "# Quality at equal MACs and equal minutes",
        "",
        "Made by `python benchmarks/quality_curves.py SNAPSHOTS`. FD-lite0 over 400 images a side "
        "(EfficientNet-Lite0 features; not FID) as a multiple of the noise floor, the teacher "
        "against itself with other latents; PSNR is to the teacher with the same latents and "
        "noise. Times faster than the teacher, in plain form and deployed, alternating in one "
        f"process. At most {meta['polish']:g} minutes of polish after the fit; the others' "
        "training takes the minutes of both. Minutes of the processor. "
        f"{meta['calibrate']} latents for the fit; {meta['machine']}; torch {meta['torch']}; "
        f"{meta['date']}.",
    ]
    for teacher in dict.fromkeys(r["teacher"] for r in data["rows"]):
        lines += [
            "",
            f"## {teacher}",
            "",
            "| at the MACs of | student | fewer MACs | fewer parameters | PSNR dB | x floor "
            "| batch 1, plain / deployed | batch 8, plain / deployed | minutes |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for r in (r for r in data["rows"] if r["teacher"] == teacher):
            start = f"| `{r['form']}` | {r['method']} |"
            if "why" in r:
                lines.append(f"{start} {r['why']} | | | | | | |")
                continue
            times = [
                f"{r[f'batch_{n}']:.1f}x / "
                + (f"{r[f'deployed_{n}']:.1f}x" if r[f"deployed_{n}"] else "-")
                for n in (1, 8)
            ]
            lines.append(
                f"{start} {r['fewer_macs']:.2f}x | {r['fewer_params']:.2f}x | {r['psnr']:.1f} "
                f"| {r['times_floor']:.2f} | {times[0]} | {times[1]} | {r['minutes']:.1f} |"
            )
    return "\n".join(lines) + "\n"


def draw(data: dict[str, Any], folder: Path) -> None:
    """Draw quality against MACs and against time, a picture a teacher, a line a kind of student."""
    axes = (("fewer_macs", "times fewer MACs"), ("batch_8", "times faster, batch 8, plain"))
    for teacher in dict.fromkeys(r["teacher"] for r in data["rows"]):
        rows = [r for r in data["rows"] if r["teacher"] == teacher and "why" not in r]
        lines = {
            key: tuple(
                Curve(
                    name=method,
                    points=tuple(
                        sorted((r[key], r["times_floor"]) for r in rows if r["method"] == method)
                    ),
                )
                for method in METHODS
            )
            for key, _ in axes
        }
        panels = [
            Panel(title=teacher, x=label, y="FD-lite0, x floor", curves=lines[key])
            for key, label in axes
        ]
        with whole_file(folder / f"quality_curves-{teacher}.svg", overwrite=True) as beside:
            beside.write_text(curves_svg(panels), encoding="utf-8")


def main() -> None:
    """Run the missing rows and write them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("snapshots", nargs="+")
    parser.add_argument("--forms", default=FORMS)
    parser.add_argument("--only", default=";".join(METHODS), help="students, with ; between")
    parser.add_argument("--calibrate", type=int, default=256)
    parser.add_argument("--polish", type=float, default=3.0, help="minutes")
    parser.add_argument("--out", default="benchmarks/results/quality_curves.json")
    options = parser.parse_args()
    keep_freed_memory()  # as the command line does
    forms, wanted = options.forms.split(","), options.only.split(";")
    results = Results(
        Path(options.out),
        {"calibrate": options.calibrate, "polish": options.polish, **machine()},
        same=("calibrate", "polish", "machine", "torch"),
        names=("teacher", "form", "method"),
        order=lambda key: (key[0], key[1], METHODS.index(key[2])),
        markdown=table,
    )
    for path in options.snapshots:
        name = Path(path).stem
        teacher = load_snapshot(path).generator.eval()
        before, facts = cost(teacher), judge(teacher)
        for form in forms:

            def minutes(name: str = name, form: str = form) -> float:
                done = results.find(name, form, "polish")
                if done is None:
                    raise SystemExit(f"{form}: the row of the polish says for how long to train")
                return float(done["minutes"])

            makers = students(
                teacher,
                form,
                calibrate=options.calibrate,
                polish=options.polish,
                minutes=minutes,
            )
            for method, make in makers.items():
                if method not in wanted or results.find(name, form, method):
                    continue
                torch.manual_seed(0)
                key = {"teacher": name, "form": form, "method": method}
                try:
                    results.put(key | row(teacher, before, facts, make))
                except ValueError as error:
                    results.put(key | {"why": str(error)})
                print(json.dumps(results.find(name, form, method)), flush=True)
                draw(results.data, results.path.parent)


if __name__ == "__main__":
    main()
