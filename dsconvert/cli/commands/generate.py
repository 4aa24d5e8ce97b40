"""A grid of images."""

from __future__ import annotations

from argparse import Namespace

from dsconvert.cli.opening import opened
from dsconvert.cli.output import Bars, emit, say
from dsconvert.cli.seeded import images_of, stage
from dsconvert.data.pictures import check_picture, grid, save_picture


def run(options: Namespace) -> None:
    """Write one image a seed into one picture."""
    check_picture(options.out, overwrite=options.overwrite)
    file = opened(options.snapshot, options)
    with Bars(hidden=options.quiet) as bars:
        progress = stage(bars, "images", options)
        images = images_of(file, options.seeds, options.label, progress, trunc=options.trunc)
    save_picture(grid(images), options.out, overwrite=options.overwrite)
    if options.json:
        emit({"snapshot": options.snapshot, "out": options.out, "seeds": options.seeds})
    else:
        say(f"wrote {len(images)} images to {options.out}")
