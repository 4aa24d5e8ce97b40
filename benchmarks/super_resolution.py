"""Compare a converted network of pictures with its original: PSNR on held-out crops, CPU time.

    python benchmarks/super_resolution.py ORIGINAL CONVERTED... --pictures ZIP

The crops are of the held-out pictures, so no fit has seen them. PSNR (dB) is to the original's
images: the mean over crops, and that of the mean squared error of all crops. ``svd`` is the plan
of preset balanced without a fit; ``bicubic`` is the input, enlarged where the network enlarges.
``--values signed`` is for networks of pictures in [-1, 1] (CycleGAN, pix2pix, CUT). Times are CPU
seconds of one thread in one process, in which the networks take turns; each ratio is the median of
the turns' ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsconvert import convert_file, deploy, open_file, picture_inputs
from dsconvert.data.pictures import psnr
from dsconvert.formats.base import GeneratorFile

_BATCH = 8


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("original")
    parser.add_argument("converted", nargs="+")
    parser.add_argument("--pictures", required=True)
    parser.add_argument("--crop", type=int, default=48)
    parser.add_argument("--crops", type=int, default=48)
    parser.add_argument("--side", type=int, default=96, help="of the input that is timed")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--values", choices=("unit", "signed"), default="unit")
    options = parser.parse_args()
    torch.set_num_threads(1)
    file = open_file(options.original)
    nets = {path: open_file(path).generator.eval() for path in options.converted}
    inputs = picture_inputs(options.pictures, size=options.crop, values=options.values)
    (crops,) = inputs.held_out(options.crops, torch.Generator().manual_seed(9))
    with torch.no_grad():
        quality(file, nets, crops, signed=options.values == "signed")
        speed(file.generator.eval(), nets, options.side, options.turns)


def quality(
    file: GeneratorFile, nets: dict[str, nn.Module], crops: Tensor, *, signed: bool
) -> None:
    """Print the PSNR of each network, of the kernels' SVD and of bicubic interpolation."""
    gain, shift = (1, 0) if signed else (2, -1)
    original = file.generator.eval()
    svd = convert_file(file, preset="balanced", init="svd", calibrate=0).main[1].model.eval()
    scale = original(crops[:1]).shape[-1] / crops.shape[-1]
    makers: dict[str, Callable[[Tensor], Tensor]] = {
        **nets,
        "svd": svd,
        "bicubic": lambda x: F.interpolate(x, scale_factor=scale, mode="bicubic"),
    }
    found: dict[str, list[Tensor]] = {name: [] for name in makers}
    for batch in crops.split(_BATCH):
        wanted = original(batch) * gain + shift
        for name, make in makers.items():
            found[name].append(psnr(make(batch) * gain + shift, wanted))
    for name, values in found.items():
        each = torch.cat(values)
        whole = -10 * (10 ** (-each / 10)).mean().log10()
        print(f"{name:<40} {each.mean():6.2f} dB mean, {whole:6.2f} dB of the mean squared error")


def speed(original: nn.Module, nets: dict[str, nn.Module], side: int, turns: int) -> None:
    """Print CPU seconds and the ratio to the original, in plain and in deployed form."""
    forms = {"original": original, **nets}
    forms |= {f"{name}, deployed": deploy(net) for name, net in list(forms.items())}
    x = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    taken: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(turns + 1):
        for name, net in forms.items():
            began = time.process_time()
            net(x)
            if turn:  # the first one prepares
                taken[name].append(time.process_time() - began)
    for name, seconds in taken.items():
        ratios = [a / b for a, b in zip(taken["original"], seconds, strict=True)]
        median = statistics.median(seconds)
        print(f"{name:<40} {median:7.4f} s, {statistics.median(ratios):5.2f}x")


if __name__ == "__main__":
    main()
