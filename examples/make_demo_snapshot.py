"""Write the demo's snapshot, in the official format, from the weights beside this file.

demo.safetensors holds a small dense FastGAN (128 px, faces) that examples/train_demo.py
made; its header names the sources. An official file holds more: the training network ``G`` beside
its moving average ``G_ema`` (equal here, as two copies), and every spectrally normalised weight
twice.

    python examples/make_demo_snapshot.py out/demo.pkl
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
from dsconvert_adapters.projected_gan import Generator
from dsconvert_adapters.projected_gan.architecture import settle_spectral_norm
from safetensors import safe_open

from dsconvert import new_snapshot, save_snapshot

WEIGHTS = Path(__file__).with_name("demo.safetensors")


def demo_generator(path: Path = WEIGHTS) -> tuple[Generator, str]:
    """Return the generator in ``path``, and the text that says how it was made."""
    with safe_open(path, "pt") as file:
        facts = file.metadata()
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    with torch.random.fork_rng():
        generator = Generator.from_config(
            resolution=int(facts["resolution"]), ngf=int(facts["ngf"])
        )
    missing = set(generator.state_dict()) - set(state)
    lost = sorted(name for name in missing if f"{name}_orig" not in state)
    if lost:
        raise SystemExit(f"{path} lacks {', '.join(lost[:5])}; make it by examples/train_demo.py.")
    generator.load_state_dict(state, strict=False)
    settle_spectral_norm(generator)  # computes the missing tensors
    return generator, facts["made"]


def main() -> None:
    """Write the file named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    options = parser.parse_args()
    generator, made = demo_generator(options.weights)
    networks = {"G": copy.deepcopy(generator), "G_ema": generator}
    save_snapshot(new_snapshot(generator), networks, options.out, overwrite=True)
    print(f"wrote {options.out} ({options.out.stat().st_size / 1e6:.1f} MB): {made}")


if __name__ == "__main__":
    main()
