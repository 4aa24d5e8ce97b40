"""Cost and speed of whole generators of other codebases, at the sizes that people train.

    python benchmarks/codebases.py [--only GLOB] [--turns 3]

The weights are random, so the rows hold no quality: MACs of one picture, and CPU seconds of one
thread in one process, in which the forms of a generator take turns (the median; the ratio is the
median of the turns' ratios). Ranks are those of the presets, from the kernels alone.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import torch
from dsconvert_adapters import cyclegan, rosinality
from torch import nn

from dsconvert import apply, cost, deploy, plan
from dsconvert.adapter import Adapter

Made = tuple[Adapter, nn.Module, int]
"""The adapter, the generator, and the side of its pictures."""


def _image_to_image(side: int, **config: Any) -> Callable[[], Made]:
    whole = {"input_nc": 3, "output_nc": 3, "ngf": 64, **config}
    return lambda: (cyclegan.ADAPTER, cyclegan.ADAPTER.make(whole), side)


def _styled() -> Made:
    channels = (512, 512, 512, 512, 512, 256, 128)
    return rosinality.ADAPTER, rosinality.Generator(channels), 256


GENERATORS: dict[str, Callable[[], Made]] = {
    "rosinality StyleGAN2, 256 px": _styled,
    "CycleGAN resnet_9blocks, 256 px": _image_to_image(256, kind="resnet", n_blocks=9),
    "CUT resnet_9blocks, 256 px": _image_to_image(
        256, kind="resnet", n_blocks=9, blur_down=True, blur_up=True
    ),
    "pix2pix unet_256, 256 px": _image_to_image(256, kind="unet", num_downs=8, norm="batch"),
}


def row(make: Callable[[], Made], turns: int) -> list[str]:
    """Return the cells of one generator, a row each for the original and two presets."""
    torch.manual_seed(0)
    adapter, model, side = make()
    model.eval().requires_grad_(False)
    channels = getattr(model, "input_nc", 0)
    x = torch.randn(1, channels, side, side) if channels else torch.randn(1, 512)

    def inputs(n: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        return (torch.randn(n, *x.shape[1:], generator=generator),)

    forms: dict[str, nn.Module] = {"original": model}
    for preset in ("balanced", "fast"):
        made = plan(model, preset=preset, width=1.0, adapter=adapter, inputs=inputs)
        done = apply(model, made, adapter=adapter, inputs=inputs, init="svd", calibrate=0)
        forms[preset] = done.model
    macs = {name: cost(net, inputs=inputs).macs for name, net in forms.items()}
    params = {name: sum(p.numel() for p in net.parameters()) for name, net in forms.items()}
    forms |= {f"{n}, deployed": deploy(m, adapter=adapter) for n, m in list(forms.items())}
    taken = _times(forms, x, turns)
    return [
        f"{name} | {params[name] / 1e6:.1f} M | {(macs[name] or 0) / 1e9:.2f} G | "
        f"{statistics.median(taken[name]):.2f} s | {_ratio(taken, name)} | "
        f"{_ratio(taken, f'{name}, deployed')}"
        for name in macs
    ]


def _times(forms: dict[str, nn.Module], x: torch.Tensor, turns: int) -> dict[str, list[float]]:
    taken: dict[str, list[float]] = {name: [] for name in forms}
    with torch.no_grad():
        for turn in range(turns + 1):
            for name, net in forms.items():
                began = time.process_time()
                net(x)
                if turn:  # the first one prepares
                    taken[name].append(time.process_time() - began)
    return taken


def _ratio(taken: dict[str, list[float]], name: str) -> str:
    ratios = [a / b for a, b in zip(taken["original"], taken[name], strict=True)]
    return f"{statistics.median(ratios):.2f}x"


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="*")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| generator | form | parameters | MACs | CPU time | faster, plain | faster, deployed |")
    print("|---|---|---|---|---|---|---|")
    for name, make in GENERATORS.items():
        if fnmatchcase(name, options.only):
            for cells in row(make, options.turns):
                print(f"| {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
