"""Differentiable augmentation of the discriminator's input, both real and generated.

Zhao et al., "Differentiable Augmentation for Data-Efficient GAN Training" (NeurIPS 2020), with the
policies and ranges of Projected GAN: colour, translation, cutout. All draws are from torch's CPU
generator, so that one seed gives the same augmentation on every device. They can be made before the
images are (:func:`draw_augmentation`): one copy takes them all to a GPU, and a CUDA graph reads
them from there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dsconvert.errors import UsageError

SHIFT = 0.125
"""Largest translation, as a share of the image's side."""
HOLE = 0.2
"""Side of the cutout, as a share of the image's side."""
_COLOR_RANGES = ((-0.5, 0.5), (0.0, 2.0), (0.5, 1.5))


def _draw_color(count: int, _size: tuple[int, int]) -> Tensor:
    return torch.stack([torch.rand(count, device="cpu") * (b - a) + a for a, b in _COLOR_RANGES], 1)


def _draw_translation(count: int, size: tuple[int, int]) -> Tensor:
    limits = [int(side * SHIFT + 0.5) for side in size]
    return torch.stack(
        [torch.randint(-m, m + 1, (count,), device="cpu") for m in limits], 1
    ).float()


def _hole(side: int) -> int:
    return int(side * HOLE + 0.5)


def _draw_cutout(count: int, size: tuple[int, int]) -> Tensor:
    sizes = [(side, _hole(side)) for side in size]
    firsts = [
        torch.randint(0, side + 1 - h % 2, (count,), device="cpu") - h // 2 for side, h in sizes
    ]
    return torch.stack(firsts, 1).float()


def color(x: Tensor, draws: Tensor | None = None) -> Tensor:
    """Change brightness (+-0.5), saturation (0 to 2) and contrast (0.5 to 1.5) of each image."""
    draws = _given(x, draws, _draw_color).to(x.dtype)
    brightness, saturation, contrast = (d.view(-1, 1, 1, 1) for d in draws.unbind(1))
    x = x + brightness
    x = torch.lerp(x.mean(dim=1, keepdim=True), x, saturation)
    return torch.lerp(x.mean(dim=(1, 2, 3), keepdim=True), x, contrast)


def translation(x: Tensor, draws: Tensor | None = None) -> Tensor:
    """Shift each image by up to an eighth of its side; the new border is zero (mid-grey)."""
    draws = _given(x, draws, _draw_translation)
    if x.device.type != "cpu":
        return _shifted(x, draws.long())
    # A negative padding crops: one operation for each image, and one for its gradient, each a plain
    # copy, which is faster on a CPU than a gather.
    down, right = (d.long().tolist() for d in draws.unbind(1))
    moved = [
        F.pad(image, (dx, -dx, dy, -dy))
        for image, dy, dx in zip(x.unbind(0), down, right, strict=True)
    ]
    return torch.stack(moved)


def _shifted(x: Tensor, shifts: Tensor) -> Tensor:
    """Shift all images by (N, 2) rows and columns at once, without reading the shifts on the CPU.

    Every operation for a single image is a launch on a GPU, which takes longer there than its work.
    """
    _, _, height, width = x.shape
    rows = torch.arange(height, device=x.device) - shifts[:, :1]
    columns = torch.arange(width, device=x.device) - shifts[:, 1:]
    inside = (
        ((rows >= 0) & (rows < height))[:, :, None]
        & ((columns >= 0) & (columns < width))[:, None, :]
    ).flatten(1)[:, None]
    at = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]
    flat = x.flatten(2)
    moved = flat.gather(2, at.flatten(1)[:, None].expand(flat.shape))
    return moved.masked_fill(~inside, 0).view(x.shape)


def cutout(x: Tensor, draws: Tensor | None = None) -> Tensor:
    """Zero a square of a fifth of the side, whose centre may lie on the border."""
    draws = _given(x, draws, _draw_cutout)
    sides: list[Tensor] = []
    for i, side in enumerate(x.shape[2:]):
        first, at = draws[:, i : i + 1], torch.arange(side, device=x.device)
        sides.append((at < first) | (at >= first + _hole(side)))
    keep = (sides[0][:, :, None] | sides[1][:, None, :])[:, None]
    return x * keep.to(x.dtype)


@dataclass(frozen=True)
class _Policy:
    numbers: int
    """Drawn for an image."""
    draw: Callable[[int, tuple[int, int]], Tensor]
    apply: Callable[[Tensor, Tensor | None], Tensor]


POLICIES: dict[str, _Policy] = {
    "color": _Policy(3, _draw_color, color),
    "translation": _Policy(2, _draw_translation, translation),
    "cutout": _Policy(2, _draw_cutout, cutout),
}


def draw_augmentation(policies: tuple[str, ...], count: int, size: tuple[int, int]) -> Tensor:
    """Draw the numbers of :func:`diffaugment` for ``count`` images of a height and width.

    Returns:
        float32 (count, numbers), on the CPU.

    Raises:
        UsageError: a policy is unknown.
    """
    drawn = [_policy(name).draw(count, size) for name in policies]
    return torch.cat(drawn, 1) if drawn else torch.zeros(count, 0, device="cpu")


def diffaugment(
    x: Tensor, policies: tuple[str, ...] = tuple(POLICIES), draws: Tensor | None = None
) -> Tensor:
    """Apply ``policies`` in order to images (N, C, H, W).

    Args:
        x: the images.
        policies: their names.
        draws: of :func:`draw_augmentation`, where x is; None: drawn now.

    Raises:
        UsageError: a policy is unknown.
    """
    if draws is None:
        draws = draw_augmentation(policies, len(x), (x.shape[2], x.shape[3])).to(x.device)
    at = 0
    for name in policies:
        policy = _policy(name)
        x = policy.apply(x, draws[:, at : at + policy.numbers])
        at += policy.numbers
    return x


def _policy(name: str) -> _Policy:
    if name not in POLICIES:
        raise UsageError(f"no augmentation is called {name!r}; choose {', '.join(POLICIES)}.")
    return POLICIES[name]


def _given(
    x: Tensor, draws: Tensor | None, draw: Callable[[int, tuple[int, int]], Tensor]
) -> Tensor:
    if draws is None:
        draws = draw(len(x), (x.shape[2], x.shape[3]))
    return draws.to(x.device)
