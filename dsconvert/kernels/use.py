"""Which of the two runs, Triton programs or torch's operators, and a record of what ran."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dsconvert.errors import UsageError
from dsconvert.kernels.geometry import Geometry, Tile

Backend = Literal["auto", "triton", "eager"]
"""``auto``: programs on CUDA where they are not slower; the others always."""
BACKENDS: tuple[Backend, ...] = ("auto", "triton", "eager")
MOST_RANKS = 9
"""Of a 3 x 3 filter more are never needed, and a program repeats its loads for each."""
_NUMBERS = (1 << 31) - 1
"""Of the largest map of a sample: a program counts them in 32 bits."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """One operation that ran.

    Attributes:
        operation: its name.
        by: ``triton`` or ``eager``.
        reason: of torch's operators.
        geometry: its shapes.
        dtype: of its maps.
    """

    operation: str
    by: str
    reason: str | None
    geometry: Geometry
    dtype: torch.dtype


@dataclass(frozen=True, kw_only=True)
class Job:
    """One launch of a program, without its tensors.

    Attributes:
        program: the function.
        args: numbers, None, and types in place of tensors.
        constants: of the program.
    """

    program: Any
    args: tuple[Any, ...]
    constants: dict[str, Any]


@dataclass
class _State:
    backend: Backend = "auto"
    tile: Tile | None = None
    events: list[Event] | None = None
    replayed: bool = False
    jobs: list[Job] | None = None


# No context variable: autograd runs the backward pass of CUDA tensors in a thread of its own.
_state = _State()


@contextmanager
def using(backend: Backend, *, tile: Tile | None = None) -> Generator[None, None, None]:
    """Run operations by ``backend`` within this context, in all threads.

    Args:
        backend: ``triton`` also runs on a CPU, where Triton interprets (``TRITON_INTERPRET=1`` was
            set before Triton was imported).
        tile: of all programs; None: the measured, or else the first.

    Raises:
        UsageError: the backend is unknown.
    """
    if backend not in BACKENDS:
        raise UsageError(f"no backend is called {backend!r}; choose {', '.join(BACKENDS)}.")
    before = _state.backend, _state.tile
    _state.backend, _state.tile = backend, tile
    try:
        yield
    finally:
        _state.backend, _state.tile = before


@contextmanager
def recording() -> Generator[list[Event], None, None]:
    """Yield a list to which every operation that runs is added."""
    before, _state.events = _state.events, []
    try:
        yield _state.events
    finally:
        _state.events = before


@contextmanager
def replayed() -> Generator[None, None, None]:
    """Choose by the time of the card alone: a graph that is replayed needs no launch by Python."""
    before, _state.replayed = _state.replayed, True
    try:
        yield
    finally:
        _state.replayed = before


def is_replayed() -> bool:
    """Return whether :func:`replayed` is in force."""
    return _state.replayed


@contextmanager
def collecting() -> Generator[list[Job], None, None]:
    """Yield a list to which each launch is added that operations on fake tensors ask for."""
    before, _state.jobs = _state.jobs, []
    try:
        yield _state.jobs
    finally:
        _state.jobs = before


def jobs() -> list[Job] | None:
    """Return the list of :func:`collecting`; None: it is not in force."""
    return _state.jobs


def is_collecting() -> bool:
    """Return whether launches are only collected, from tensors without data."""
    return _state.jobs is not None


def ran(
    operation: str, tile: Tile | None, reason: str | None, geometry: Geometry, dtype: torch.dtype
) -> None:
    """Add an operation that ran, by a tile or (None) by torch's operators, to the record."""
    if _state.events is None:
        return
    by = "eager" if tile is None else "triton"
    _state.events.append(
        Event(operation=operation, by=by, reason=reason, geometry=geometry, dtype=dtype)
    )


def backend() -> Backend:
    """Return the backend in use."""
    return _state.backend


def wanted_tile() -> Tile | None:
    """Return the tile that :func:`using` names."""
    return _state.tile


def takes(device: torch.device) -> bool:
    """Return whether operators are to be preferred to other code for maps on a device.

    They are on CUDA, and where :func:`using` names a backend; elsewhere, other code is made for the
    device.
    """
    return _state.backend != "auto" or device.type == "cuda"


@functools.cache
def has_triton() -> bool:
    """Return whether Triton can be imported; it is not imported yet."""
    return importlib.util.find_spec("triton") is not None


def interprets() -> bool:
    """Return whether Triton runs its programs on a CPU, in Python."""
    from dsconvert.kernels import tile_programs

    return type(tile_programs.place).__name__ == "InterpretedFunction"


@functools.cache
def _has_bfloat16(index: int) -> bool:
    return torch.cuda.get_device_capability(index)[0] >= 8


def why_not(x: Tensor, geometry: Geometry) -> str | None:
    """Return the reason why Triton programs can't do an operation on x, or None."""
    if _state.backend == "eager":
        return "torch's operators were asked for"
    if not has_triton():
        return "Triton is not installed"
    if x.device.type != "cuda" and not (_state.backend == "triton" and interprets()):
        return f"the tensors are on {x.device.type}"
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        return f"the type is {x.dtype}"
    if x.device.type == "cuda" and x.dtype == torch.bfloat16 and not _has_bfloat16(x.get_device()):
        return "the card has no bfloat16"
    if x.numel() == 0:
        return "the map is empty"
    if geometry.rank > MOST_RANKS or geometry.multiplier > MOST_RANKS:
        return f"a channel sums more than {MOST_RANKS} filtered ones"
    if geometry.largest > _NUMBERS:
        return "a sample's map has more than 2**31 numbers"
    return None
