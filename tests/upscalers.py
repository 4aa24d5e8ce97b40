"""Models that read pictures, and picture files for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn


class Upscaler(nn.Module):
    """A small x2 network with residuals: pictures in [0, 1] in and out, any even size."""

    def __init__(self, channels: int = 3, width: int = 16) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.up = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.first(x), 0.1)
        y = y + F.leaky_relu(self.second(y), 0.1)
        y = F.leaky_relu(self.up(F.interpolate(y, scale_factor=2, mode="nearest")), 0.1)
        return F.interpolate(x, scale_factor=2, mode="nearest") + 0.3 * self.last(y)


class GreyUpscaler(Upscaler):
    def __init__(self) -> None:
        super().__init__(channels=1)


class Signed(Upscaler):
    """The same for values from -1 to 1."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(super().forward(x))


def upscaler(kind: type[Upscaler] = Upscaler) -> Upscaler:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind().eval()


def state_file(path: Path, kind: type[Upscaler] = Upscaler) -> Path:
    torch.save(upscaler(kind).state_dict(), path)
    return path


def picture_folder(folder: Path, count: int = 10, side: int = 40) -> Path:
    """Write smooth random pictures, each with a colour of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    for i in range(count):
        coarse = draw.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((side, side + i % 3), Image.Resampling.BICUBIC)
        image.save(folder / f"{i:02}.png")
    return folder
