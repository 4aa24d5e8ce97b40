"""Compare a converted vocoder with its original: STFT distance on held-out sounds, CPU time.

    python benchmarks/vocoder.py ORIGINAL CONVERTED... --sounds FOLDER

The crops are of the held-out files, so no fit has heard them. The multi-resolution STFT distance
(``dsconvert.data.spectrograms``) is to the original's sounds, and to the recordings that the
spectrograms are of. ``svd`` is the plan of preset balanced without a fit. Times are CPU seconds of
one thread in one process, in which the networks take turns; each ratio is the median of the turns'
ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace

import torch
from torch import Tensor, nn

from dsconvert import convert_file, cost, open_file
from dsconvert.data.mel_inputs import mel_inputs
from dsconvert.data.spectrograms import mel_spectrogram, stft_distance


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("original")
    parser.add_argument("converted", nargs="*")
    parser.add_argument("--sounds", required=True)
    parser.add_argument("--crop", type=int, default=48, help="frames")
    parser.add_argument("--crops", type=int, default=16)
    parser.add_argument("--frames", type=int, default=64, help="of the input that is timed")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--svd", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    file = open_file(options.original)
    nets = {path: open_file(path).generator for path in options.converted}
    if options.svd:
        found = convert_file(file, preset="balanced", width=1, init="svd", calibrate=0, polish=0)
        nets["svd"] = found.main[1].model.eval()
    spec = file.sounds()
    if spec is None:
        raise SystemExit(f"{options.original} makes no sounds")
    held = mel_inputs(options.sounds, replace(spec, frames=options.crop)).held_out
    recordings = held.crops(options.crops, torch.Generator().manual_seed(9))
    with torch.no_grad():
        quality(file.generator, nets, mel_spectrogram(recordings, spec), recordings)
        speed(file.generator, nets, spec.mels, options.frames, options.turns)


def quality(original: nn.Module, nets: dict[str, nn.Module], mels: Tensor, real: Tensor) -> None:
    """Print the distance of each network to the original and to the recordings."""
    wanted = original(mels)[:, 0]
    print(f"{'original':<40} {'':>22} to recordings {stft_distance(wanted, real).mean():6.3f}")
    for name, net in nets.items():
        made = net(mels)[:, 0]
        near, own = (stft_distance(made, to) for to in (wanted, real))
        print(
            f"{name:<40} to the original {near.mean():6.3f} (worst {near.max():.3f}), to "
            f"recordings {own.mean():6.3f}"
        )


def speed(
    original: nn.Module, nets: dict[str, nn.Module], mels: int, frames: int, turns: int
) -> None:
    """Print MACs, CPU seconds and the ratio to the original."""
    forms = {"original": original, **nets}
    x = torch.randn(1, mels, frames, generator=torch.Generator().manual_seed(0)) * 2 - 5
    taken: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(turns + 1):
        for name, net in forms.items():
            began = time.process_time()
            net(x)
            if turn:  # the first one prepares
                taken[name].append(time.process_time() - began)
    for name, seconds in taken.items():
        macs = (cost(forms[name], (x,)).macs or 0) / 1e9
        ratios = [a / b for a, b in zip(taken["original"], seconds, strict=True)]
        median = statistics.median(seconds)
        print(f"{name:<40} {macs:6.2f} GMAC, {median:7.4f} s, {statistics.median(ratios):5.2f}x")


if __name__ == "__main__":
    main()
