"""``dsconvert train``: a generator from scratch."""

from __future__ import annotations

import argparse

from dsconvert.cli.parsers import arguments, training
from dsconvert.config.choices import PRESETS
from dsconvert.errors import UsageError

HELP = "train a generator from scratch, dense or converted"
_KIMG = 1000.0
_DEFAULTS = {
    "kimg": _KIMG, "preset": "none", "resolution": 256, "ngf": 128, "z_dim": 256, "channels": 3,
    "spectral": "keep",
}  # fmt: skip


def add(command: argparse.ArgumentParser) -> None:
    """Declare its options."""
    training.where(command)
    command.add_argument("--cfg", metavar="NAME", help="fastgan or fastgan_lite")
    command.add_argument("--preset", choices=("none", *PRESETS), help="how it is converted (none)")
    command.add_argument("--rank", type=arguments.count, metavar="N", help="one rank for all")
    command.add_argument(
        "--resolution", type=arguments.count, metavar="PX", help="of the images (256)"
    )
    command.add_argument("--cond", action="store_true", help="use the data's labels")
    command.add_argument(
        "--ngf", type=arguments.count, metavar="N", help="channel multiplier (128)"
    )
    command.add_argument("--z-dim", type=arguments.count, metavar="N", help="latent size (256)")
    command.add_argument("--channels", type=int, choices=(1, 3, 4), help="of an image (3)")
    command.add_argument(
        "--spectral",
        choices=("keep", "fold"),
        help="spectral norm on the factors of a converted layer, as official training has (keep)",
    )
    command.add_argument(
        "--resume", metavar="RUN", help="go on with a run; what else can be given changes no weight"
    )
    training.recipe(command, kimg=_KIMG)
    training.watching(command)
    training.speed(command)


def check(options: argparse.Namespace) -> None:
    """Refuse what does not go together."""
    if options.resume:
        training.refuse_fixed(options)
        return
    if not options.data or not options.cfg:
        raise UsageError("train needs --data DIR|ZIP and --cfg NAME (or --resume RUN).")
    training.fill(options, _DEFAULTS)
