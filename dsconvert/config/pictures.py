"""Settings of jobs that may run a generator on pictures, or on other given inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dsconvert.config.base import BaseSettings, Job
from dsconvert.config.choices import Values
from dsconvert.config.setting import Group, part, setting
from dsconvert.errors import UsageError

PICTURES = Group(
    "Pictures as inputs",
    "For a generator that reads pictures (super-resolution, image to image). Pictures that are "
    "held out of a fit are the ones that compare and eval judge by.",
    last=True,
)


@dataclass(frozen=True, kw_only=True)
class Pictures(BaseSettings):
    """The inputs of a generator that reads pictures."""

    calibration: str | None = setting(
        None,
        help="images to crop at random, 20 or more (.wav files for a vocoder); or a .npz with an "
        "array for each argument of a call",
        metavar="DIR|ZIP|NPZ",
        completes="file",
        group=PICTURES,
    )
    crop: int | None = setting(
        None,
        help="side of the crops; of sounds, in frames",
        metavar="PX",
        at_least=1,
        default_text="as the model asks, else 64",
        group=PICTURES,
    )
    values: Values | None = setting(
        None,
        help="of pictures that the model reads and writes: unit is 0 to 1, signed is -1 to 1; "
        "needed with --module",
        group=PICTURES,
    )
    held_out: float = setting(
        0.2,
        help="share of the images that only judge; 1: all of them (compare, eval)",
        metavar="SHARE",
        above=0,
        at_most=1,
        group=PICTURES,
    )


_COMPANIONS = ("--crop", "--values", "--held-out")


@dataclass(frozen=True, kw_only=True)
class Calibrated(Job):
    """A job that may run a generator on pictures."""

    pictures: Pictures = part()

    @classmethod
    def check_typed(cls, typed: Mapping[str, Any]) -> None:
        """Refuse options of pictures where no pictures are named."""
        super().check_typed(typed)
        idle = [o for o in _COMPANIONS if o in typed]
        if idle and not typed.get("--calibration"):
            raise UsageError(f"{', '.join(idle)}: only together with --calibration DIR|ZIP|NPZ.")
