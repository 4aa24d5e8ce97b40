"""Pictures, files and a small generator for the tests of training."""

from __future__ import annotations

import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from dsconvert_adapters.projected_gan import Generator
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (40, 30), mode: str = "RGB") -> Image.Image:
    """A smooth random picture."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    levels = np.random.default_rng(seed).integers(0, 256, (4, 4, bands), dtype=np.uint8)
    small = Image.fromarray(levels[..., 0] if bands == 1 else levels, mode)
    return small.resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    out = BytesIO()
    image.save(out, kind)
    return out.getvalue()


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def small_generator(**config: object) -> Generator:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Generator.from_config(**{"resolution": 128, "ngf": 2, "z_dim": 8, **config})


def tiny_zip(folder: Path) -> Path:
    """A dozen 64 px pictures of three classes, in the official layout."""
    files = {f"00/img{i:02d}.png": encoded(picture(i, (64, 64))) for i in range(12)}
    pairs = ",".join(f'["{name}", {i % 3}]' for i, name in enumerate(files))
    files["dataset.json"] = f'{{"labels": [{pairs}]}}'.encode()
    return zipped(folder / "tiny.zip", files)
