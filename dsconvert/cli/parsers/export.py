"""``dsconvert export``: a generator in another format."""

from __future__ import annotations

import argparse

from dsconvert.cli.parsers import arguments
from dsconvert.config.choices import FORMATS, NOISES

HELP = "a generator as ONNX, torch.export, OpenVINO or safetensors"


def add(command: argparse.ArgumentParser) -> None:
    """Declare its options."""
    command.add_argument(
        "snapshot",
        help="a file with a generator, converted or not, of any kind that the other commands open",
    )
    command.add_argument("--format", choices=FORMATS, help="default: what the suffix of --out says")
    command.add_argument(
        "--noise",
        choices=NOISES,
        default="random",
        help="random: an input of its own, 'noise'; fixed: built in; zero: none (default random)",
    )
    command.add_argument("--seed", type=arguments.seed, default=0, help="of the fixed noise")
    arguments.output(command, required=True)
    arguments.quiet(command)
    arguments.json(command)
    arguments.module(command)
