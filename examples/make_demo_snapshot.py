"""Write a small snapshot in the official format, for the demo.

The generator is **untrained**: random weights from a fixed seed, so its pictures are abstract
blobs, and the demo shows the machinery, not the quality that a trained network keeps. Its 3x3
kernels are smoothed: kernels of pure noise have no structure that any low rank could keep, and no
trained network has such kernels.

    python examples/make_demo_snapshot.py out/demo.pkl
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
from dsconvert_adapters.projected_gan import Generator
from dsconvert_adapters.projected_gan.architecture import settle_spectral_norm
from torch import nn
from torch.nn import functional as F

from dsconvert import new_snapshot, save_snapshot


def smooth(generator: nn.Module, *, times: int = 2) -> None:
    """Blur every 3x3 kernel over its nine taps with a binomial filter."""
    line = torch.tensor([0.25, 0.5, 0.25])
    blur = (line[:, None] * line)[None, None]
    for conv in generator.modules():
        if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3):
            weight = conv.get_parameter("weight_orig")
            taps = weight.data.reshape(-1, 1, 3, 3)
            for _ in range(times):
                taps = F.conv2d(taps, blur, padding=1)
            weight.data.copy_(taps.reshape(weight.shape))
    settle_spectral_norm(generator)


def untrained_generator(*, resolution: int = 128, ngf: int = 16, seed: int = 0) -> Generator:
    """An official-style generator with random weights and settled statistics.

    Batch normalisation of a fresh model believes that everything has mean 0 and variance 1;
    a few batches in training mode give it the statistics that training would have left behind.
    The noise weights start at zero and get a small value, so that the demo covers them.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        generator = Generator.from_config(resolution=resolution, ngf=ngf)
        smooth(generator)
        for name, parameter in generator.named_parameters():
            if name.endswith("weight") and parameter.numel() == 1:
                parameter.data.fill_(0.05)
        norms = [m for m in generator.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms:
            norm.train()
            norm.momentum = None  # a plain average over the batches
        with torch.no_grad():
            for _ in range(4):
                generator(torch.randn(8, generator.z_dim), torch.zeros(8, 0))
        for norm in norms:
            norm.eval()
            norm.momentum = 0.1
    return generator


def main() -> None:
    """Write the file named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--ngf", type=int, default=16, help="width (official files: 128)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator = untrained_generator(ngf=options.ngf, seed=options.seed)
    # A training keeps the network and its moving average apart; here they are equal, in two copies.
    networks = {"G": copy.deepcopy(generator), "G_ema": generator}
    save_snapshot(new_snapshot(generator), networks, options.out, overwrite=True)
    size = options.out.stat().st_size / 1e6
    print(f"wrote {options.out} ({size:.1f} MB): an UNTRAINED 128 px generator, random weights")


if __name__ == "__main__":
    main()
