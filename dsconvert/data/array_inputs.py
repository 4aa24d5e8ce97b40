"""The arguments of forward calls from a ``.npz`` file: an array an argument, a row a sample."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dsconvert.config.pictures import Pictures
from dsconvert.errors import DataError, UsageError

_SPLIT_SEED = 20261126
"""Of the order in which rows are held out; the same in every command."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ArrayInputs:
    """A sampler of rows: ``inputs(n, generator)`` returns one tensor an array.

    Attributes:
        path: the file.
        arrays: one an argument, all rows; floating-point ones are float32.
        rows: indices of the rows of this part.
        others: indices of the rows of the held-out part.
    """

    path: Path
    arrays: tuple[Tensor, ...]
    rows: Tensor
    others: Tensor

    @cached_property
    def held_out(self) -> ArrayInputs:
        """The sampler of the held-out part; of that part, itself."""
        return replace(self, rows=self.others, others=self.others[:0]) if len(self.others) else self

    def __call__(self, n: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return a batch of ``n`` rows, as many different ones as there are.

        Raises:
            UsageError: this part holds no row.
        """
        if not len(self.rows):
            raise UsageError(
                f"all rows of {self.path} are held out, so none is left to fit to; give a smaller "
                "--held-out (held_out= in Python)."
            )
        order = shuffled(len(self.rows), n, generator)
        picked = self.rows[torch.tensor(order, device="cpu")]
        return tuple(a[picked] for a in self.arrays)


def shuffled(count: int, n: int, generator: torch.Generator) -> list[int]:
    """Return ``n`` indices below ``count`` at random: each once before any comes again."""
    chosen: list[int] = []
    while len(chosen) < n:
        chosen += torch.randperm(count, generator=generator, device="cpu").tolist()
    return chosen[:n]


def check_share(held_out: float) -> None:
    """Check the share of the inputs that only judge.

    Raises:
        UsageError: it is out of range.
    """
    if not 0 < held_out <= 1:
        raise UsageError(f"held_out is {held_out!r}; give a share above 0, up to 1.")


def judging(count: int, held_out: float) -> int:
    """Return the number of inputs that only judge: one or more, and not all unless asked."""
    found = max(1, math.ceil(held_out * count))
    return count if held_out == 1 else min(found, max(1, count - 1))


def array_inputs(
    path: str | os.PathLike[str], *, held_out: float = Pictures.held_out
) -> ArrayInputs:
    """Return a sampler of the rows of a ``.npz`` file, which ``numpy.savez`` wrote.

    Each array is one argument of a forward call, in the order of the file, with the samples in its
    first dimension and the values that the model reads. Integers become int64, in one dimension
    also those of 8 bits (class labels). Nothing in the file is executed.

    Args:
        path: the file.
        held_out: share of the rows that only judge.

    Raises:
        DataError: the file can't be read, or its arrays do not fit together.
        UsageError: the share is out of range.
    """
    where = Path(path)
    check_share(held_out)
    found = _arrays(where)
    lengths = {name: (len(a) if a.ndim else 0) for name, a in found.items()}
    count = next(iter(lengths.values()), 0)
    if count < 2 or set(lengths.values()) != {count}:
        raise DataError(
            f"{where} holds arrays of {', '.join(f'{n}: {k}' for n, k in lengths.items()) or 'no'} "
            "rows; an array is one argument of a call, and all have the same number of rows, 2 or "
            "more."
        )
    draw = torch.Generator().manual_seed(_SPLIT_SEED)
    order = torch.randperm(count, generator=draw, device="cpu")
    held = judging(count, held_out)
    return ArrayInputs(
        path=where,
        arrays=tuple(_tensor(where, name, array) for name, array in found.items()),
        rows=order[held:].sort().values,
        others=order[:held].sort().values,
    )


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise ValueError("it holds one array alone, as numpy.save writes it")
        with loaded:
            return {name: np.asarray(loaded[name]) for name in loaded.files}
    except FileNotFoundError:
        raise DataError(f"there is no file {path}; mend the name.") from None
    except MemoryError:
        raise
    except Exception as error:  # NumPy and zipfile raise errors of many types on a broken file
        raise DataError(
            f"{path} can't be read as a .npz of numbers ({str(error)[:160]}); write it with "
            "numpy.savez."
        ) from error


def _tensor(path: Path, name: str, array: np.ndarray) -> Tensor:
    # One number a row is a class; more are the levels of a picture, and no model reads these.
    if array.dtype == np.uint8 and array.ndim > 1:
        raise DataError(
            f"{name} in {path} holds 8-bit values; save the values that the model reads as "
            "float32 (for pictures: name the folder or zip of the image files instead)."
        )
    if array.dtype.kind not in "fiub":
        raise DataError(f"{name} in {path} is of type {array.dtype}; save numbers.")
    made = torch.from_numpy(np.ascontiguousarray(array))
    if array.dtype.kind == "f":
        if not bool(made.isfinite().all()):
            raise DataError(f"{name} in {path} holds values that are not finite; mend them.")
        return made.float()
    return made.bool() if array.dtype.kind == "b" else made.long()
