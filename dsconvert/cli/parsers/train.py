"""``dsconvert train``: a generator from scratch."""

from __future__ import annotations

import argparse

from dsconvert.cli.parsers import training
from dsconvert.errors import UsageError
from dsconvert.records import PRESETS

HELP = "train a generator from scratch, dense or converted"
_KIMG = 1000.0


def add(command: argparse.ArgumentParser) -> None:
    """Declare its options."""
    training.where(command)
    command.add_argument("--cfg", metavar="NAME", help="fastgan or fastgan_lite")
    command.add_argument(
        "--preset", choices=("none", *PRESETS), default="none", help="how it is converted (none)"
    )
    command.add_argument("--rank", type=training.count, metavar="N", help="one rank for all")
    command.add_argument("--resolution", type=training.count, default=256, metavar="PX")
    command.add_argument("--cond", action="store_true", help="use the data's labels")
    command.add_argument("--ngf", type=training.count, default=128, help="channel multiplier (128)")
    command.add_argument("--z-dim", type=training.count, default=256, help="latent size (256)")
    command.add_argument("--channels", type=int, choices=(1, 3, 4), default=3, help="of an image")
    command.add_argument(
        "--spectral",
        choices=("keep", "fold"),
        default="keep",
        help="spectral norm on the factors of a converted layer, as official training has (keep)",
    )
    command.add_argument(
        "--resume", metavar="RUN", help="go on with a run; of the rest, only lengths may change"
    )
    training.recipe(command, kimg=_KIMG)
    training.watching(command)
    training.speed(command)


def check(options: argparse.Namespace) -> None:
    """Refuse what does not go together."""
    if not options.resume and (not options.data or not options.cfg):
        raise UsageError("train needs --data DIR|ZIP and --cfg NAME (or --resume RUN).")
    if options.resume and (options.data or options.cfg or options.name):
        raise UsageError("--resume RUN knows its data and model: drop --data, --cfg and --name.")
    if (options.blur_sigma is None) != (options.blur_kimg is None):
        raise UsageError("--blur-sigma and --blur-kimg go together.")
    if not options.resume:
        options.kimg = options.kimg or _KIMG
