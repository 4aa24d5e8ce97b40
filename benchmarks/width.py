"""Width, rank and polish against image quality and time, on one trained teacher.

    python benchmarks/width.py SNAPSHOT [--forms none:0.5,balanced:auto,...] [--calibrate 768]

A form is PRESET:WIDTH or PRESET:WIDTH:POLISH (minutes at most). Quality is FD-lite0 over 400 images
a side and PSNR to the teacher with the same latents and noise; time is the ratio of medians at
batch 1 and 8, teacher and form alternating in one process, in plain form. Results are written after
every row; a run can be cut short and is resumed. The table has one section a teacher.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dsconvert import apply, load_snapshot, plan
from dsconvert.core.pipeline import sampler_of
from dsconvert.metrics import LiteFeatures, compare_sets, frechet_distance, sample_images
from dsconvert.records import Plan

SAMPLES = 400
FORMS = "none:0.5,none:auto,balanced:1,balanced:0.5,balanced:auto,fast:1,fast:auto"
STATE = "width.json"


def speedup(teacher: nn.Module, form: nn.Module, sampler: Any, batch: int, repeats: int) -> float:
    """Return the ratio of median seconds, both models alternating."""
    args = sampler(batch, torch.Generator().manual_seed(0))
    seconds: tuple[list[float], list[float]] = ([], [])
    with torch.no_grad():
        for _ in range(repeats + 1):
            for model, times in zip((teacher, form), seconds, strict=True):
                began = time.perf_counter()
                model(*args)
                times.append(time.perf_counter() - began)
    # The first call of each allocates.
    first, second = (statistics.median(t[1:]) for t in seconds)
    return first / second


@dataclass(frozen=True)
class Judged:
    """A teacher's images and their features, which every student is compared with."""

    sampler: Any
    net: LiteFeatures
    images: torch.Tensor
    ours: torch.Tensor
    other: torch.Tensor
    """Features of images of other latents."""

    @property
    def floor(self) -> float:
        """FD-lite0 of the teacher against itself."""
        return frechet_distance(self.ours, self.other)


def judge(teacher: nn.Module) -> Judged:
    """Return what the teacher's students are compared with."""
    sampler, net = sampler_of(teacher), LiteFeatures()
    images = sample_images(teacher, sampler, samples=SAMPLES, seed=1)
    other = net(sample_images(teacher, sampler, samples=SAMPLES, seed=2))
    return Judged(sampler, net, images, net(images), other)


def quality(student: nn.Module, facts: Judged) -> dict[str, Any]:
    """Return PSNR and FD-lite0 of a student, the latter as a multiple of the floor too."""
    images = sample_images(student, facts.sampler, samples=SAMPLES, seed=1)
    found = compare_sets(facts.net(images), facts.ours, facts.other, bootstrap=50)
    error = float((images - facts.images).square().mean())
    return {
        "psnr": float(10 * torch.log10(torch.tensor(4 / max(error, 1e-12)))),
        "fd": found.value,
        "times_floor": found.value / found.floor,
        "ratio_interval": list(found.ratio_interval),
        "excess": list(found.interval),
    }


def machine() -> dict[str, Any]:
    """Return what measures: cores, threads, torch, date."""
    return {
        "machine": f"{os.cpu_count()} CPU cores, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def planned(teacher: nn.Module, form: str) -> Plan:
    """Return dsconvert's plan of PRESET:WIDTH."""
    preset, width = form.split(":")
    share: Any = width if width == "auto" else float(width)
    return plan(teacher, preset=preset, width=share)


def row(name: str, teacher: nn.Module, facts: Judged, calibrate: int) -> dict[str, Any]:
    """Convert to one form and measure it."""
    preset, width, *minutes = name.split(":")
    polish = float(minutes[0]) if minutes else 0.0
    began = time.perf_counter()
    made = planned(teacher, f"{preset}:{width}")
    result = apply(teacher, made, calibrate=calibrate, polish=polish)
    seconds = time.perf_counter() - began
    before, after = result.before.macs or 0, result.after.macs or 1
    return {
        "form": name,
        "fewer_macs": before / after,
        "fewer_params": result.before.params / result.after.params,
        **quality(result.model, facts),
        "batch_1": speedup(teacher, result.model, facts.sampler, 1, 15),
        "batch_8": speedup(teacher, result.model, facts.sampler, 8, 7),
        "seconds": seconds,
        "polish": None if result.polish is None else vars(result.polish),
        "widths": {w.group: f"{w.kept}/{w.channels}" for w in result.plan.widths},
    }


def table(state: dict[str, Any]) -> str:
    """The sections as markdown."""
    lines = [
        "# Width, rank and polish",
        "",
        "Made by `python benchmarks/width.py SNAPSHOT`. FD-lite0 over 400 images a side "
        "(EfficientNet-Lite0 features; not FID) as a multiple of the noise floor, the teacher "
        "against itself with other latents. PSNR is to the teacher with the same latents and "
        "noise. Speed is in plain torch.nn form, teacher and form alternating in one process.",
    ]
    for teacher, section in state.items():
        meta = section["meta"]
        lines += [
            "",
            f"## {teacher}",
            "",
            f"Floor {meta['floor']:.1f}; {meta['calibrate']} latents for the fit; "
            f"{meta['machine']}; torch {meta['torch']}; {meta['date']}; load before "
            f"{meta['load']}.",
            "",
            "| preset | width | polish, steps | fewer MACs | fewer parameters | PSNR dB | FD-lite0 "
            "| x floor | batch 1 | batch 8 | seconds |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for r in section["rows"]:
            preset, width, *_ = r["form"].split(":")
            steps = (r.get("polish") or {}).get("steps", "")
            lines.append(
                f"| {preset} | {width} | {steps} | {r['fewer_macs']:.2f}x "
                f"| {r['fewer_params']:.2f}x | {r['psnr']:.1f} | {r['fd']:.1f} "
                f"| {r['fd'] / meta['floor']:.2f} | {r['batch_1']:.1f}x | {r['batch_8']:.1f}x "
                f"| {r['seconds']:.0f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the missing rows and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("snapshot")
    parser.add_argument("--forms", default=FORMS)
    parser.add_argument("--calibrate", type=int, default=768)
    parser.add_argument("--out", default="benchmarks/results")
    options = parser.parse_args()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    path = out / STATE
    state: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    teacher = load_snapshot(options.snapshot).generator.eval()
    facts = judge(teacher)
    section = state.setdefault(Path(options.snapshot).stem, {"rows": []})
    section["meta"] = {
        "floor": facts.floor,
        "calibrate": options.calibrate,
        **machine(),
        "load": f"{os.getloadavg()[0]:.1f}",
    }
    for name in options.forms.split(","):
        if any(r["form"] == name for r in section["rows"]):
            continue
        section["rows"].append(row(name, teacher, facts, options.calibrate))
        print(section["rows"][-1], flush=True)
        path.write_text(json.dumps(state, indent=1))
        (out / "width.md").write_text(table(state))


if __name__ == "__main__":
    main()
