"""The tile of a program, or torch's operators: measured once for each operation and size.

The choice is kept in the cache folder, one file a card and version, so that a training that starts
again adds its sums in the same order.
"""

from __future__ import annotations

import contextlib
import functools
import json
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from dsconvert.errors import DsconvertError
from dsconvert.kernels import use
from dsconvert.kernels.geometry import Geometry, Tile, power_of_two, tiles_of
from dsconvert.util.cache import cache_folder
from dsconvert.util.files import whole_file
from dsconvert.util.foreign_text import from_json

Value = TypeVar("Value")
RUNS = 5
"""Timed runs of each candidate."""
SLEEP = 1 << 20
"""Cycles in front of a timed run: half a millisecond, longer than most launches take."""
VERSION = 3
"""Of the programs and their candidates: older choices are not read."""
EAGER = -1
"""Stands for torch's operators among the candidates."""


class Choices:
    """Measured choices of one device, in memory and in a file."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[str, int] = {}
        with contextlib.suppress(OSError, ValueError):
            found: Any = from_json(path.read_text(encoding="utf-8")) if path else {}
            if isinstance(found, dict):  # of another form it is damaged
                known = cast("dict[str, Any]", found).items()
                self._known = {k: v for k, v in known if type(v) is int and v >= EAGER}

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
    """Return the least time of a call on the current CUDA stream, after one that is not timed.

    The longer of the time of the card and the time in which Python launches; the card's alone for
    what is :func:`replayed <dsconvert.kernels.use.replayed>` as a graph.
    """
    call()
    card = host = float("inf")
    for _ in range(RUNS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # Work in front, so that the card does not wait for the launches in between.
        torch.cuda._sleep(SLEEP)
        begin.record()
        began = time.perf_counter()
        call()
        host = min(host, 1000 * (time.perf_counter() - began))
        end.record()
        end.synchronize()
        card = min(card, begin.elapsed_time(end))
    return card if use.is_replayed() else max(card, host)


def compile_together(x: Tensor, tiles: tuple[Tile, ...], call: Callable[[Tile], object]) -> None:
    """Run every candidate once, each in its own thread: Triton compiles them side by side.

    What fails here fails again where it is timed.
    """
    if len(tiles) < 2:
        return
    stream = torch.cuda.current_stream(x.device)

    def one(tile: Tile) -> None:
        # Modes and streams belong to a thread.
        with contextlib.suppress(Exception), torch.no_grad(), torch.cuda.stream(stream):
            call(tile)

    with ThreadPoolExecutor(len(tiles)) as pool:
        list(pool.map(one, tiles))


@functools.lru_cache(maxsize=4096)
def key_of(operation: str, geometry: Geometry, dtype: torch.dtype, parts: str) -> str:
    """Return the name of a measurement: batches between two powers of two share one."""
    sizes = asdict(geometry) | {"samples": power_of_two(geometry.samples)}
    said = "/".join(str(int(v)) for v in sizes.values())
    return f"{operation} {str(dtype).removeprefix('torch.')} {said} {parts}"


def _measured(key: str, x: Tensor, measure: Callable[[str], int]) -> int | None:
    """Return a choice for a CUDA tensor: a known one, or measured now; None: it can't be now."""
    key += " replayed" if use.is_replayed() else ""
    choices = choices_of(x)
    chosen = choices.get(key)
    if chosen is None:
        if torch.cuda.is_current_stream_capturing():
            return None
        chosen = measure(key)
        choices.put(key, chosen)
    return chosen


def fastest_way(
    ways: tuple[Callable[[], object], ...], clock: Callable[[Callable[[], object]], float]
) -> int:
    """Time equivalent ways; return the index of the fastest. One that fails is out.

    Raises:
        Exception: of the first way, where all fail.
    """
    times: dict[int, float] = {}
    for i, way in enumerate(ways):
        with contextlib.suppress(Exception):
            times[i] = clock(way)
    return min(times, key=lambda i: times[i]) if times else 0


def faster(key: str, x: Tensor, ways: tuple[Callable[[], Value], ...]) -> Value:
    """Run the fastest of equivalent ways on CUDA, measured once for each key; else the first."""
    if x.device.type != "cuda" or use.backend() == "eager" or use.is_collecting():
        return ways[0]()
    chosen = _measured(key, x, lambda _: fastest_way(ways, milliseconds))
    return ways[min(chosen or 0, len(ways) - 1)]()


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
    if reason is None and use.is_collecting():
        return _every(geometry, by_triton)
    if reason is None:
        tile, reason = _tile(operation, x, geometry, by_triton, by_eager, parts)
    use.ran(operation, tile, reason, geometry, x.dtype)
    return by_eager() if tile is None else by_triton(tile)


def _every(geometry: Geometry, by_triton: Callable[[Tile], Value]) -> Value:
    """Collect the launches of every candidate."""
    *others, last = reversed(tiles_of(geometry))
    for tile in others:
        by_triton(tile)
    return by_triton(last)


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

    def measure(key: str) -> int:
        compile_together(x, tiles, by_triton)
        return fastest(key, tiles, by_triton, by_eager, milliseconds)

    chosen = _measured(key_of(operation, geometry, x.dtype, parts), x, measure)
    if chosen is None:
        return tiles[0], None
    if chosen == EAGER:
        return None, "torch's operators were faster, or the program failed"
    return tiles[min(chosen, len(tiles) - 1)], None
