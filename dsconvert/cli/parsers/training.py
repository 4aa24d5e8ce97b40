"""Options of a training run, for the commands that begin one.

What is not typed is None here (a switch: False), so that a resumed run can tell what was.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from dsconvert.cli.parsers import arguments
from dsconvert.cli.parsers.arguments import count, positive
from dsconvert.errors import UsageError

_DEFAULTS: dict[str, Any] = {"out": "runs", "discs": 4, "backbone": "auto"}
"""What no recipe holds; the rest is left to :class:`dsconvert.train.config.TrainConfig`."""
_FREE = (
    "kimg", "tick", "snap", "checkpoint_minutes", "keep_last", "evaluate", "workers", "compile",
    "recompute", "device", "quiet", "json",
)  # fmt: skip
"""What a resumed run takes, beside the run."""


def fill(options: argparse.Namespace, defaults: Mapping[str, Any]) -> None:
    """Set what was not typed.

    Raises:
        UsageError: options that need one another.
    """
    if (options.blur_sigma is None) != (options.blur_kimg is None):
        raise UsageError("--blur-sigma and --blur-kimg go together.")
    for name, value in {**_DEFAULTS, **defaults}.items():
        if getattr(options, name) is None:
            setattr(options, name, value)


def refuse_fixed(options: argparse.Namespace) -> None:
    """Refuse what a resumed run can't change, rather than pass over it.

    Raises:
        UsageError: names what was typed.
    """
    given = [
        "--" + name.replace("_", "-")
        for name, value in vars(options).items()
        if value not in (None, False) and name not in (*_FREE, "resume", "command")
    ]
    if given:
        free = ", ".join("--" + name.replace("_", "-") for name in _FREE)
        raise UsageError(
            f"--resume RUN goes on with the run's own data, model and recipe: drop "
            f"{', '.join(given)} (only {free} may be given)."
        )


def where(command: argparse.ArgumentParser) -> None:
    """What is trained on, and where the run goes."""
    command.add_argument("--data", metavar="DIR|ZIP", help="images; official zips work as they are")
    command.add_argument("--out", metavar="DIR", help="where runs go (runs)")
    command.add_argument("--name", metavar="NAME", help="of the run's folder (default: numbered)")
    command.add_argument("--mirror", action="store_true", help="also show each image flipped")


def recipe(command: argparse.ArgumentParser, *, kimg: float) -> None:
    """The recipe; the defaults are the official ones."""
    group = command.add_argument_group("recipe (official defaults)")
    add = group.add_argument
    add("--kimg", type=positive, metavar="N", help=f"length, thousands of images ({kimg:g})")
    add("--batch", type=count, metavar="N", help="over all processes (64)")
    add("--micro-batch", type=count, metavar="N", help="at a time; gradients add up (all)")
    add("--lr", type=positive, metavar="X", help="learning rate of both networks (2e-4)")
    add("--ema-kimg", type=positive, metavar="N", help="half-life of G_ema (batch * 10 / 32)")
    add("--blur-sigma", type=positive, metavar="PX", help="blur what D sees at first (off)")
    add("--blur-kimg", type=positive, metavar="N", help="and fade that out over so many kimg")
    add("--seed", type=arguments.seed, metavar="N", help="of everything that is drawn (0)")
    add("--discs", type=int, choices=(1, 2, 3, 4), help="discriminator heads (4)")
    add("--no-augment", action="store_true", help="no DiffAugment")
    add(
        "--backbone",
        choices=("auto", "package", "hub", "random"),
        help="where the discriminator's ImageNet weights come from (auto)",
    )


def watching(command: argparse.ArgumentParser) -> None:
    """What is kept and shown; may differ when a run goes on."""
    group = command.add_argument_group("what is kept and shown")
    add = group.add_argument
    add("--tick", type=positive, metavar="KIMG", help="a line of statistics every so often (4)")
    add("--snap", type=count, metavar="TICKS", help="snapshot, grid, checkpoint (50)")
    add("--checkpoint-minutes", type=positive, metavar="N", help="a checkpoint at least (10)")
    add("--keep-last", type=arguments.whole, metavar="K", help="checkpoints and snapshots (2)")
    add(
        "--evaluate",
        type=arguments.whole,
        metavar="N",
        help="judge each snapshot by FD-lite0 over N images, keep the best (off)",
    )
    arguments.quiet(command)
    arguments.json(command)


def speed(command: argparse.ArgumentParser) -> None:
    """How it runs on the machine."""
    group = command.add_argument_group("speed and memory")
    add = group.add_argument
    add("--precision", choices=("fp32", "bf16", "fp16"), help="of the passes (fp32)")
    add("--channels-last", action="store_true", help="memory layout that convolutions like")
    add(
        "--recompute",
        choices=("none", "blocks", "lean"),
        help="keep fewer activations of G: whole blocks run again for the backward pass, or (lean) "
        "only noise, normalisation, gate and depthwise convolution",
    )
    add("--compile", action="store_true", help="torch.compile both networks")
    add("--workers", type=arguments.whole, metavar="N", help="that read images ahead (3)")
    add("--device", metavar="NAME", help="cpu, cuda:0, ... (default: a GPU if there is one)")
    add("--deterministic", action="store_true", help="repeatable GPU kernels")
