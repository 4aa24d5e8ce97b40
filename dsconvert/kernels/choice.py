"""The tile of a program, or torch's operators: measured once for each operation and size.

The choice is kept in the cache folder, one file a card and version, so that a training that starts
again adds its sums in the same order.
"""

from __future__ import annotations

import contextlib
import functools
import json
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from dsconvert.errors import DsconvertError
from dsconvert.kernels import use
from dsconvert.kernels.geometry import Geometry, Tile, power_of_two, tiles_of
from dsconvert.util.cache import cache_folder
from dsconvert.util.files import whole_file

Value = TypeVar("Value")
RUNS = 5
"""Timed runs of each candidate."""
VERSION = 1
"""Of the programs and their candidates: older choices are not read."""
EAGER = -1
"""Stands for torch's operators among the candidates."""


class Choices:
    """Measured choices of one device, in memory and in a file."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[str, int] = {}
        with contextlib.suppress(OSError, ValueError):
            found: Any = json.loads(path.read_text(encoding="utf-8")) if path else {}
            self._known = {str(k): int(v) for k, v in found.items()}

    def get(self, key: str) -> int | None:
        """Return the candidate chosen for an operation; None: not measured."""
        return self._known.get(key)

    def put(self, key: str, choice: int) -> None:
        """Keep a choice; a file that can't be written is no error, the next process measures."""
        self._known[key] = choice
        if self._path is None:
            return
        with contextlib.suppress(OSError, DsconvertError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(self._path, overwrite=True) as part:
                part.write_text(json.dumps(self._known, indent=1), encoding="utf-8")


_by_device: dict[int, Choices] = {}


def choices_of(x: Tensor) -> Choices:
    """Return the choices of the device of x."""
    index = x.get_device()
    if index not in _by_device:
        name = torch.cuda.get_device_name(index).replace(" ", "-").replace("/", "-")
        file = f"kernels-{VERSION}-{name}-torch-{torch.__version__}.json"
        _by_device[index] = Choices(cache_folder() / file)
    return _by_device[index]


def milliseconds(call: Callable[[], object]) -> float:
    """Return the least time of a call on the current CUDA stream, after one that is not timed."""
    call()
    best = float("inf")
    for _ in range(RUNS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        best = min(best, begin.elapsed_time(end))
    return best


@functools.lru_cache(maxsize=4096)
def key_of(operation: str, geometry: Geometry, dtype: torch.dtype, parts: str) -> str:
    """Return the name of a measurement: batches between two powers of two share one."""
    sizes = asdict(geometry) | {"samples": power_of_two(geometry.samples)}
    said = "/".join(str(int(v)) for v in sizes.values())
    return f"{operation} {str(dtype).removeprefix('torch.')} {said} {parts}"


def fastest(
    key: str,
    tiles: tuple[Tile, ...],
    by_triton: Callable[[Tile], object],
    by_eager: Callable[[], object],
    clock: Callable[[Callable[[], object]], float],
) -> int:
    """Time every candidate; return the index of the fastest tile, or ``EAGER``.

    A candidate that fails is out, but for want of memory: of torch's operators, which need more,
    that decides against them; of a program it is raised.

    Raises:
        torch.OutOfMemoryError: there is not enough memory for the program.
    """
    times: dict[int, float] = {}
    failed: Exception | None = None
    for i, tile in enumerate(tiles):
        try:
            times[i] = clock(lambda tile=tile: by_triton(tile))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # Triton's own, of its compiler or of the driver
            failed = error
    if failed is not None and not times:
        said = (str(failed).strip().splitlines() or [type(failed).__name__])[0]
        warnings.warn(
            f"Triton could not run {key!r} ({said}); torch's operators do it.", stacklevel=2
        )
        return EAGER
    with contextlib.suppress(torch.OutOfMemoryError):
        times[EAGER] = clock(by_eager)
    return min(times, key=lambda i: times[i])


def run(
    operation: str,
    x: Tensor,
    geometry: Geometry,
    by_triton: Callable[[Tile], Value],
    by_eager: Callable[[], Value],
    *,
    parts: str = "",
) -> Value:
    """Run an operation by the Triton program or by torch's operators.

    Args:
        operation: its name.
        x: its input.
        geometry: its shapes.
        by_triton: runs the program with a tile.
        by_eager: runs torch's operators.
        parts: names what else decides how long it takes.
    """
    reason, tile = use.why_not(x, geometry), None
    if reason is None:
        tile, reason = _tile(operation, x, geometry, by_triton, by_eager, parts)
    use.ran(operation, tile, reason, geometry, x.dtype)
    return by_eager() if tile is None else by_triton(tile)


def _tile(
    operation: str,
    x: Tensor,
    geometry: Geometry,
    by_triton: Callable[[Tile], object],
    by_eager: Callable[[], object],
    parts: str,
) -> tuple[Tile | None, str | None]:
    """Return the tile, or None and the reason."""
    tiles = tiles_of(geometry)
    if (own := use.wanted_tile()) is not None:
        return own, None
    if x.device.type != "cuda" or use.backend() == "triton":
        return tiles[0], None
    choices, key = choices_of(x), key_of(operation, geometry, x.dtype, parts)
    chosen = choices.get(key)
    if chosen is None:
        if torch.cuda.is_current_stream_capturing():
            return tiles[0], None
        chosen = fastest(key, tiles, by_triton, by_eager, milliseconds)
        choices.put(key, chosen)
    if chosen == EAGER:
        return None, "torch's operators were faster, or the program failed"
    return tiles[min(chosen, len(tiles) - 1)], None
