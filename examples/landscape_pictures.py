"""Cut landscape squares from the photographs of two Debian packages, for the paper's experiment.

    python examples/landscape_pictures.py landscape.zip

Downloads mate-backgrounds and lomiri-wallpapers-16.04 by apt-get (their licences are in the
packages), and writes 24 squares of each photograph, 256 px, in the official zip layout.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image

PACKAGES = ("mate-backgrounds", "lomiri-wallpapers-16.04")
PHOTOS = ("mate/nature", "_by_")
NO_LANDSCAPE = ("Picture_", "analogpattern", "Stripes")
SIDE = 256
STEPS = ((1.0, 3), (0.7, 9), (0.5, 12))
"""Edges of the squares, as shares of the photograph's shorter one, and how many of each."""


def squares(picture: Image.Image) -> Iterator[Image.Image]:
    """Yield the squares of one photograph, ``SIDE`` pixels wide."""
    for extent, steps in STEPS:
        edge = int(min(picture.size) * extent)
        room = [e - edge for e in picture.size]
        for i in range(steps):
            # A low-discrepancy walk (the golden ratios) over the photograph.
            left = int(room[0] * ((0.5 + i * 0.7548776662) % 1))
            top = int(room[1] * ((0.5 + i * 0.5698402910) % 1))
            cut = picture.crop((left, top, left + edge, top + edge))
            yield cut.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def write(photos: Sequence[Path], target: Path) -> int:
    """Write the squares of all photographs; return how many."""
    count = 0
    with zipfile.ZipFile(target, "w") as out:
        for photo in photos:
            with Image.open(photo) as opened:
                picture = opened.convert("RGB")
            for square in squares(picture):
                data = BytesIO()
                square.save(data, "PNG")
                out.writestr(f"00000/img{count:08d}.png", data.getvalue())
                count += 1
        out.writestr("dataset.json", json.dumps({"labels": None}))
    return count


def main() -> None:
    """Download the packages, and write the zip."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    Image.MAX_IMAGE_PIXELS = None  # wallpapers are large
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for package in PACKAGES:
            done = subprocess.run(["apt-get", "download", package], cwd=folder, capture_output=True)
            if done.returncode:
                print(f"{package} could not be downloaded; continuing without it")
        for archive in folder.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", archive, folder / "files"], check=True)
        photos = sorted(
            p for p in (folder / "files").rglob("*.jpg")
            if any(k in str(p) for k in PHOTOS) and not any(k in p.name for k in NO_LANDSCAPE)
        )  # fmt: skip
        if not photos:
            raise SystemExit("there are no photographs: run apt-get update, then try again.")
        count = write(photos, options.out)
    print(f"wrote {count} squares from {len(photos)} photographs to {options.out}")


if __name__ == "__main__":
    main()
