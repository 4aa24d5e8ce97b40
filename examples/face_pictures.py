r"""Pick the round yellow faces out of the emoji pictures, for a teacher that can be named.

    python examples/face_pictures.py emoji256.zip faces.zip

The source holds the pictures of npm's ``@lobehub/fluent-emoji-3d`` (MIT) on white. A picture is a
face if what is not white nearly fills one disc, most of that disc is yellow, and a little of it is
dark: eyes and a mouth. 65 of the 1,611 pictures are, and one of those is a biohazard sign.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dsconvert.util.numbers import counted

SIDE = 64
"""Pixels a side of the copy that is judged."""
RADIUS = 27.3
"""Of the disc, in pixels of that copy: the faces' own."""
OVERLAP = 0.88
"""Least intersection over union of picture and disc."""
YELLOW = 0.6, 0.99
DARK = 0.025, 0.3
"""Shares of the disc."""


def is_face(picture: NDArray[np.uint8]) -> bool:
    """Return whether an RGB picture (SIDE, SIDE, 3) shows a round yellow face."""
    rgb = picture.astype(np.float32)
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    disc = np.hypot(x, y) < RADIUS
    drawn = (rgb.min(-1) < 235) | (np.ptp(rgb, axis=-1) > 25)
    yellow = (red > 200) & (green > 110) & (blue < 150) & (red - blue > 70)
    overlap = (drawn & disc).sum() / (drawn | disc).sum()
    inside_yellow = (yellow & disc).sum() / disc.sum()
    inside_dark = ((red < 140) & disc).sum() / disc.sum()
    return (
        bool(overlap > OVERLAP)
        and YELLOW[0] < inside_yellow < YELLOW[1]
        and DARK[0] < inside_dark < DARK[1]
    )


def main() -> None:
    """Write the zip named second from the pictures of the first."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pictures", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    kept = 0
    with zipfile.ZipFile(options.pictures) as source, zipfile.ZipFile(options.out, "w") as target:
        for name in sorted(source.namelist()):
            data = source.read(name)
            small = Image.open(io.BytesIO(data)).convert("RGB").resize((SIDE, SIDE))
            if is_face(np.asarray(small)):
                target.writestr(name, data)
                kept += 1
    print(f"wrote {options.out}: {counted(kept, 'face')}")


if __name__ == "__main__":
    main()
