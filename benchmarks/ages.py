"""How much spare width and rank a generator has, at several ages of its training.

    python benchmarks/ages.py KIMG=SNAPSHOT [KIMG=SNAPSHOT ...] [--name emoji-64-ngf32]

KIMG: for how many thousand images the snapshot was trained (0: not at all). For each:

- maps: the share of a map's second moment that the best half, and quarter, of its channels leave
  unexplained (greedy choice, least squares; pivoted Cholesky), the median over the maps that can
  lose channels;
- ranks: what rank 1 and 4 of every 3x3 block convolution lose of its output, from the kernel's SVD
  and after the fit (the median over layers), and the PSNR of the images after the fit.

One section a name; a name that is measured again is replaced.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from rank_curve import at_rank
from torch import Tensor, nn
from width import machine

from dsconvert import apply, load_snapshot, plan
from dsconvert.core.analysis import analyse
from dsconvert.metrics import sample_images
from dsconvert.model.inputs import sampler_of
from dsconvert.model.sites import find_sites

SHARES = (0.5, 0.25)
RANKS = (1, 4)
IMAGES = 100


def unexplained(moment: Tensor, kept: int) -> float:
    """Return the share of the trace of (C, C) ``moment`` behind the best ``kept`` channels."""
    rest = moment.clone()
    whole = rest.diagonal().sum()
    for _ in range(kept):
        best = int(_gains(rest).argmax())
        column = rest[:, best]
        rest = rest - torch.outer(column, column) / column[best].clamp(min=1e-12)
    return float(rest.diagonal().clamp(min=0).sum() / whole)


def _gains(rest: Tensor) -> Tensor:
    """Return how much of the trace each channel explains; a chosen one explains no more."""
    own = rest.diagonal()
    return torch.where(own > 1e-9 * own.max(), rest.square().sum(0) / own.clamp(min=1e-12), 0.0)


def moments(teacher: nn.Module, names: list[str], latents: int) -> dict[str, Tensor]:
    """Return the (C, C) second moments of the modules' inputs."""
    found: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def seen(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            rows = args[0].double().movedim(1, -1).flatten(0, -2)
            found[name] = found.get(name, 0) + rows.t() @ rows

        return seen

    handles = [
        teacher.get_submodule(n).register_forward_pre_hook(hook(n)) for n in dict.fromkeys(names)
    ]
    sampler, generator = sampler_of(teacher), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(latents // 8):
            teacher(*sampler(8, generator))
    for handle in handles:
        handle.remove()
    return found


def spare_width(teacher: nn.Module, latents: int) -> dict[str, float]:
    """Return the median unexplained share over the maps, by share of channels."""
    consumers = [g.consumers[0] for g in analyse(teacher).groups.free()]
    maps = moments(teacher, consumers, latents)
    return {
        f"{share:g}": statistics.median(
            unexplained(m, max(1, round(share * len(m)))) for m in maps.values()
        )
        for share in SHARES
    }


def spare_rank(teacher: nn.Module, calibrate: int) -> dict[str, dict[str, float]]:
    """Return, by rank, the median errors of the layers and the PSNR of the images."""
    sampler = sampler_of(teacher)
    base = plan(teacher, preset="paper")
    sites = find_sites(teacher, example_inputs=sampler(1, torch.Generator()))[0].convolutions
    theirs = sample_images(teacher, sampler, samples=IMAGES, seed=1)
    found = {}
    for rank in RANKS:
        made = at_rank(base, {s.name: s for s in sites}, "dw-pw", rank)
        result = apply(teacher, made, calibrate=calibrate)
        ours = sample_images(result.model, sampler, samples=IMAGES, seed=1)
        error = (ours - theirs).square().mean().clamp(min=1e-12)
        found[str(rank)] = {
            "svd": statistics.median(f.svd for f in result.fits),
            "fitted": statistics.median(f.fitted for f in result.fits),
            "psnr": float(10 * torch.log10(4 / error)),
        }
    return found


def table(state: dict[str, Any]) -> str:
    """The sections as markdown."""
    lines = [
        "# Spare width and rank, by age",
        "",
        "Made by `python benchmarks/ages.py KIMG=SNAPSHOT ...`. Maps: the share of a map that the "
        "best half, and quarter, of its channels leave unexplained by least squares. Ranks: the "
        "relative error of a 3x3 convolution's output, from the kernel's SVD > after the fit. "
        f"Medians over maps and layers. PSNR of {IMAGES} images after the fit of all layers at "
        "that rank, without training.",
    ]
    for name, section in state.items():
        lines += [
            "",
            f"## {name}",
            "",
            f"{section['latents']} latents; {section['machine']}; torch {section['torch']}; "
            f"{section['date']}.",
            "",
            "| kimg | half of the channels | a quarter | rank 1, SVD > fit | rank 4, SVD > fit "
            "| PSNR at rank 1 / 4 |",
            "|---|---|---|---|---|---|",
        ]
        for r in section["rows"]:
            one, four = r["ranks"]["1"], r["ranks"]["4"]
            cells = [f"{100 * r['maps'][f'{share:g}']:.1f} %" for share in SHARES]
            cells += [f"{100 * x['svd']:.0f} > {100 * x['fitted']:.1f} %" for x in (one, four)]
            cells.append(f"{one['psnr']:.1f} / {four['psnr']:.1f} dB")
            lines.append(f"| {r['kimg']:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure the snapshots and write their section."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("snapshots", nargs="+", metavar="KIMG=SNAPSHOT")
    parser.add_argument("--name", default="emoji-64-ngf32")
    parser.add_argument("--latents", type=int, default=128)
    parser.add_argument("--out", default="benchmarks/results")
    options = parser.parse_args()
    path = Path(options.out) / "ages.json"
    state: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    rows = []
    for given in options.snapshots:
        kimg, _, file = given.partition("=")
        teacher = load_snapshot(file).generator.eval().requires_grad_(False)
        rows.append(
            {
                "kimg": float(kimg),
                "maps": spare_width(teacher, options.latents),
                "ranks": spare_rank(teacher, options.latents),
            }
        )
        print(rows[-1], flush=True)
        state[options.name] = {**machine(), "latents": options.latents, "rows": rows}
        path.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
        path.with_suffix(".md").write_text(table(state), encoding="utf-8")


if __name__ == "__main__":
    main()
