"""How many programs make a map, and how many tiles each of them takes."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch

from dsconvert.kernels.geometry import SMALLEST, Geometry, Tile

PROGRAMS = 4096
"""Of a launch that sums; several times as many as a card runs at a time, so that all of it works
to the end. Where there are more tiles, each program takes several."""
MOST_TILES = 32
"""Of a program that sums: its rounding grows with them."""
SUMMED = 2
"""Numbers that a thread of the programs with most sums makes at a time: it keeps up to 16 of each
number. With 2 a card's multiprocessor holds 16 groups of 32 threads."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """How a program runs on a geometry.

    Attributes:
        steps: tiles of a program.
        groups: programs of a sample and a block of channels.
        grid: all programs.
        constants: of the program.
    """

    steps: int
    groups: int
    grid: tuple[int]
    constants: dict[str, Any]


@functools.lru_cache(maxsize=4096)
def plan_of(
    g: Geometry, tile: Tile, channels: int, dtype: torch.dtype, sums: bool, most: int
) -> Plan:
    """Return the plan of a program that makes maps of so many channels.

    Args:
        g: the geometry.
        tile: the tile.
        channels: of the map.
        dtype: of the maps.
        sums: whether it sums.
        most: numbers of a thread.
    """
    import triton.language as tl

    language: Any = tl
    pixels, columns, together = tile.shape(g, channels, most=most)
    rows = pixels // columns
    tiles = -(-g.height // rows) * -(-g.width // columns)
    beside = g.samples * -(-channels // together)
    steps = max(1, min(MOST_TILES, beside * tiles // PROGRAMS, tiles)) if sums else 1
    groups = -(-tiles // steps)
    constants = {
        "R": g.rank, "M": g.multiplier, "KIND": g.kind, "LAST": g.last,
        "ACC": language.float64 if dtype == torch.float64 else language.float32,
        "BP": pixels, "BX": columns, "BC": together,
        # Without a filter no load is shifted.
        "ALIGNED": (tile.aligned or g.kind == 0) and g.width % 16 == 0,
        "EVEN": g.last and not any(c % 2 for c in (g.inputs, g.channels, g.outputs, together)),
        "num_warps": max(1, min(tile.warps, pixels * together // SMALLEST)),
    }  # fmt: skip
    return Plan(steps=steps, groups=groups, grid=(beside * groups,), constants=constants)
