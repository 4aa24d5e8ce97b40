"""The job ``generate``: images of seeds and classes as a picture, a data set or a video."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from dsconvert.config.choices import ImageFormat, ImageOutput
from dsconvert.config.files import (
    ANY_FILE,
    OUTPUT,
    Messages,
    Output,
    Sampling,
    Source,
    generator_path,
)
from dsconvert.config.pictures import Calibrated
from dsconvert.config.setting import Group, setting
from dsconvert.config.values import seeds as numbers
from dsconvert.errors import UsageError

VIDEO = Group(
    "Videos",
    "A walk through the latents of the seeds, in their order, at constant noise; with several "
    "classes, through all seeds of the first class, then of the next.",
)
VIDEO_SUFFIXES = (".mp4", ".webm")
_BELONGS: dict[str, tuple[ImageOutput, ...]] = {
    "--format": ("folder", "zip"),
    "--columns": ("picture",),
    "--frames": ("video",),
    "--fps": ("video",),
    "--no-loop": ("video",),
}
"""The outputs that an option is for."""
_NAMES: dict[ImageOutput, str] = {
    "picture": "a picture",
    "folder": "a folder (FOLDER/)",
    "zip": "a .zip",
    "video": f"a video ({' or '.join(VIDEO_SUFFIXES)})",
}


def image_output(out: str) -> ImageOutput:
    """Return the kind of output that the path ``out`` names."""
    if out.endswith(("/", "\\")):
        return "folder"
    suffix = Path(out).suffix.lower()
    if suffix == ".zip":
        return "zip"
    return "video" if suffix in VIDEO_SUFFIXES else "picture"


@dataclass(frozen=True, kw_only=True)
class GenerateJob(Sampling, Output, Messages, Source, Calibrated):
    """Write images: a grid, a folder, a data set (.zip) or a video.

    The end of --out says which. A .png, .jpg or .webp is one picture, a grid. FOLDER/ (with the
    slash) gets a file an image; where it was interrupted, the same command goes on (without
    --overwrite, which begins again). A .zip is a data set in the official layout, with the classes
    in dataset.json. A .mp4 or .webm is a walk from seed to seed.
    """

    keeps_memory: ClassVar[bool] = True
    snapshot: str = generator_path(ANY_FILE)
    out: str = setting(
        help="where to write", metavar="FILE|FOLDER/", group=OUTPUT, completes="file"
    )
    seeds: tuple[int, ...] = setting(
        tuple(range(16)),
        help="one image a seed (and class)",
        metavar="0-15",
        default_text="0-15",
        read=numbers,
    )
    classes: tuple[int, ...] = setting(
        (),
        option="--class",
        help="classes of a conditional generator; every seed is drawn in each of them",
        metavar="0-9",
        read=numbers,
    )
    format: ImageFormat = setting("png", help="of the files in a folder or .zip")
    columns: int | None = setting(
        None, help="of the grid", at_least=1, default_text="about as many as rows"
    )
    frames: int = setting(60, help="from one seed to the next", at_least=1, group=VIDEO)
    fps: int = setting(30, help="frames a second", at_least=1, at_most=240, group=VIDEO)
    loop: bool = setting(
        True, option="--no-loop", help="end at the last seed, not at the first again", group=VIDEO
    )

    @property
    def kind(self) -> ImageOutput:
        """The kind of output."""
        return image_output(self.out)

    @property
    def goes_on(self) -> str | None:
        """The command, in words, that continues an interrupted job in its folder; None: none."""
        if self.kind != "folder":
            return None
        # With --overwrite it would begin again with the first image.
        return "the same command without --overwrite" if self.overwrite else "the same command"

    @classmethod
    def check_typed(cls, typed: Mapping[str, Any]) -> None:
        """Refuse options of another kind of output."""
        super().check_typed(typed)
        kind = image_output(str(typed.get("--out", "")))
        for option, kinds in _BELONGS.items():
            if option in typed and kind not in kinds:
                raise UsageError(
                    f"{option} is for {' or '.join(_NAMES[k] for k in kinds)}, and --out "
                    f"{typed.get('--out', '')} names {_NAMES[kind]}; leave the option out."
                )
