"""Shapes of an operation, and the tiles in which a Triton program makes its output."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """An operation on x (N, I, H, W): a depthwise filter, if there is one, and a gate.

    Attributes:
        samples: N.
        inputs: I.
        channels: C, behind the filter.
        outputs: C, or C / 2 behind a gate.
        height: H; 1 without a filter, whose pixels have no neighbours.
        width: W, or H W without a filter.
        rank: R, the inputs of a channel.
        multiplier: M, the channels that an input is filtered to.
        kind: 0: no filter; 1: 3 x 3; 2: 4 x 4, transposed, which doubles the size.
        last: whether the maps are in ``channels_last``.
    """

    samples: int
    inputs: int
    channels: int
    outputs: int
    height: int
    width: int
    rank: int
    multiplier: int
    kind: int
    last: bool

    @property
    def taps(self) -> int:
        """T, the numbers of a filter."""
        return (0, 9, 16)[self.kind]

    @property
    def largest(self) -> int:
        """The numbers of the largest map of one sample."""
        pixels = self.height * self.width
        behind = self.channels * pixels * (4 if self.kind == 2 else 1)
        return max(self.inputs * pixels, behind)


COLUMNS = 32
"""Of a tile of a filter's map: a line of the cache in float32. Wider ones read more rows anew."""


SMALLEST = 64
"""Pixels of a tile of a contiguous map: two a thread, of one warp."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """How a program divides a map.

    Attributes:
        numbers: of the map that one program makes (times four with a filter that doubles it).
        channels: the most channels of them, in ``channels_last``.
        warps: the most groups of 32 threads of a program.
        aligned: whether a filter's programs are told that rows begin at multiples of 16 numbers:
            several are then stored at a time, but shifted loads touch more lines of the cache.
    """

    numbers: int = 512
    channels: int = 64
    warps: int = 4
    aligned: bool = False

    def shape(
        self, geometry: Geometry, channels: int, *, most: int = 1 << 30
    ) -> tuple[int, int, int]:
        """Return pixels, columns and channels of a tile of a map with so many channels.

        Args:
            geometry: of the operation.
            channels: of the map.
            most: numbers that a thread may make.
        """
        wide = power_of_two(geometry.width)
        numbers = min(self.numbers, most * 32 * self.warps)
        if not geometry.last:
            # Small maps share one program of few threads.
            least = power_of_two(geometry.height) * min(wide, COLUMNS if geometry.kind else wide)
            pixels = min(numbers, max(SMALLEST, least))
            few = max(8, min(wide, COLUMNS))
            return pixels, min(few if geometry.kind else pixels, pixels), 1
        # Without a filter a thread keeps few numbers for each that it makes.
        numbers *= 1 if geometry.kind else 4
        together = min(power_of_two(channels), self.channels, numbers)
        pixels = numbers // together
        # At least two rows, which share the rows that the filter reads.
        few = max(1, min(COLUMNS // 4, pixels // 2))
        return pixels, min(wide, few) if geometry.kind else pixels, together


CONTIGUOUS = (Tile(), Tile(aligned=True))
CHANNELS_LAST = (Tile(), Tile(numbers=1024))
"""Tiles to try: few, since each is compiled for each program. For an H100 (Triton 3.8) the first of
each pair keeps every program's numbers in registers (``tests/kernels/compile_programs.py``)."""


def tiles_of(geometry: Geometry) -> tuple[Tile, ...]:
    """Return the tiles to try; the first is the one to take untried."""
    if geometry.last:
        return CHANNELS_LAST
    # Elsewhere both are the same program, or the map is too small to tell them apart.
    apart = geometry.kind != 0 and geometry.width % 16 == 0 and geometry.width >= COLUMNS
    return CONTIGUOUS if apart else CONTIGUOUS[:1]


def power_of_two(n: int) -> int:
    """Return the least power of two that is not below n."""
    return 1 << max(0, n - 1).bit_length()


def is_last(x: Tensor) -> bool:
    """Return whether (N, C, H, W) is in ``channels_last`` and not contiguous as well."""
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def format_of(x: Tensor) -> torch.memory_format:
    """Return the layout of an operation on x, and so of its output."""
    return torch.channels_last if is_last(x) else torch.contiguous_format


def laid_out(x: Tensor, like: Tensor) -> Tensor:
    """Return x in the layout of an operation on ``like``."""
    return x.contiguous(memory_format=format_of(like))


def channels_of(x: Tensor, weight: Tensor | None) -> int:
    """Return C, the channels behind the filter (C, R, k, k)."""
    return int(x.shape[1] if weight is None else weight.shape[0])


def size_of(x: Tensor, weight: Tensor | None) -> tuple[Any, Any]:
    """Return the height and the width behind the filter."""
    step = 2 if weight is not None and weight.shape[-1] == 4 else 1
    return x.shape[2] * step, x.shape[3] * step


def geometry_of(x: Tensor, weight: Tensor | None, *, gate: bool = False) -> Geometry:
    """Return the geometry of an operation on x with filters (C, R, k, k)."""
    filters = None if weight is None else tuple(weight.shape)
    return _geometry(tuple(x.shape), filters, gate, is_last(x))


@functools.lru_cache(maxsize=4096)
def _geometry(
    shape: tuple[int, ...], filters: tuple[int, ...] | None, gate: bool, last: bool
) -> Geometry:
    n, inputs, height, width = (int(s) for s in shape)
    channels, kind, rank, multiplier = inputs, 0, 1, 1
    if filters is None:
        height, width = 1, height * width
    else:
        channels, rank = int(filters[0]), int(filters[1])
        kind = 2 if filters[-1] == 4 else 1
        multiplier = channels * rank // inputs
    return Geometry(
        samples=n, inputs=inputs, channels=channels, outputs=channels // 2 if gate else channels,
        height=height, width=width, rank=rank, multiplier=multiplier, kind=kind, last=last,
    )  # fmt: skip
