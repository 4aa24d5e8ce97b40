"""Read plain data beside the tensors of a checkpoint: a Namespace, numpy scalars and arrays.

``torch.load(weights_only=True)`` refuses their names. Allowing the real ones would hand a file
numpy's own unpickling functions, and a dtype whose flags say that bytes are object pointers is
enough to run code there. So each name is given to torch's reader with a stand-in of ours, which
checks its arguments and makes a plain value of them; nothing of numpy is called with an object from
a file. The values are written back under the original names.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Mapping
from pickle import UnpicklingError
from typing import Any, NoReturn

import numpy as np
import torch

_NUMBER = re.compile(r"[<>|=]?(?:b1|[iu][1248]|f[248]|c(?:8|16)|[SU]\d{1,6})", re.ASCII)
_ORDERS = ("<", ">", "|", "=")
_MAX_NAMES = 10_000


class Namespace(argparse.Namespace):
    """Becomes an ``argparse.Namespace`` once its attributes are known."""

    def __init__(self) -> None:  # a file's arguments are refused
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        """Take the attributes, where they are no more than that.

        Raises:
            UnpicklingError: they are something else.
        """
        if not isinstance(state, Mapping) or len(state) > _MAX_NAMES:
            raise UnpicklingError("Unsupported state of an argparse.Namespace")
        for name in state:
            if type(name) is not str or (name.startswith("__") and name.endswith("__")):
                raise UnpicklingError("Unsupported attribute of an argparse.Namespace")
        vars(self).update(state)
        self.__class__ = argparse.Namespace  # type: ignore[assignment]

    def __reduce__(self) -> Any:  # one without attributes has no state and stays a stand-in
        return argparse.Namespace, (), vars(self) or None


class _Type:
    """A numpy dtype of numbers or text; nothing else can be spelled."""

    def __init__(self, code: Any, align: Any = False, copy: Any = True) -> None:
        if type(code) is not str or _NUMBER.fullmatch(code) is None:
            raise UnpicklingError(f"Unsupported numpy dtype {str(code)[:40]!r}")
        if type(align) not in (bool, int) or type(copy) not in (bool, int):
            raise UnpicklingError("Unsupported arguments of a numpy dtype")
        self.real = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        """Take the byte order of a state of an honest dtype.

        It holds a version, the byte order, no sub-array, names or fields, sizes, and flags. Text
        has the flag 8 (its memory is cleared first); other flags belong to objects.

        Raises:
            UnpicklingError: anything else.
        """
        if (
            type(state) is not tuple
            or not 8 <= len(state) <= 9
            or type(state[0]) is not int
            or state[1] not in _ORDERS
            or state[2:5] != (None, None, None)
            or state[7] not in (0, 8)
            or any(x is not None for x in state[8:])
        ):
            raise UnpicklingError("Unsupported state of a numpy dtype")
        self.real = self.real.newbyteorder(state[1])


class _Array(np.ndarray):
    """An array of numbers, written back as a plain one."""

    def __new__(cls, *_: Any) -> NoReturn:
        """Refuse the call: only :func:`_reconstruct` makes an array.

        Raises:
            UnpicklingError: always.
        """
        raise UnpicklingError("Unsupported call of numpy.ndarray")

    def __setstate__(self, state: Any) -> None:
        """Take version, shape, type, order and as many bytes as the shape needs.

        Raises:
            UnpicklingError: anything else.
        """
        if type(state) is not tuple or len(state) != 5:
            raise UnpicklingError("Unsupported state of a numpy array")
        _, shape, kind, fortran, raw = state
        if (
            type(shape) is not tuple
            or len(shape) > 32
            or not all(type(n) is int and 0 <= n < 1 << 48 for n in shape)
            or type(kind) is not _Type
            or type(fortran) is not bool
            or type(raw) is not bytes
            or math.prod(shape) * kind.real.itemsize != len(raw)
        ):
            raise UnpicklingError("Unsupported state of a numpy array")
        super().__setstate__((1, shape, kind.real, fortran, raw))  # type: ignore[call-overload]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.view(np.ndarray).__reduce_ex__(protocol)

    def __reduce__(self) -> Any:
        return self.view(np.ndarray).__reduce__()


def _reconstruct(kind: Any, shape: Any, code: Any) -> Any:
    """Return an empty array, whose state follows."""
    if kind is not _Array or shape != (0,) or code not in (b"b", "b"):
        raise UnpicklingError("Unsupported call of numpy's _reconstruct")
    return np.ndarray.__new__(_Array, (0,), np.uint8)


def _scalar(kind: Any, raw: Any = b"") -> Any:
    """Return one number or text."""
    if type(kind) is not _Type or type(raw) is not bytes or len(raw) != kind.real.itemsize:
        raise UnpicklingError("Unsupported numpy scalar")
    # A text of no length has no bytes either.
    return np.frombuffer(raw, kind.real)[0] if raw else kind.real.type()


def _no_bytes() -> bytes:
    """Return the empty string of bytes, which protocol 2 spells as a call."""
    return b""


_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
_STAND_INS: list[tuple[Callable[..., Any], str]] = [
    (Namespace, "argparse.Namespace"),
    (_Type, "numpy.dtype"),
    (_Array, "numpy.ndarray"),
    (_no_bytes, "builtins.bytes"),
    *((_scalar, f"{module}.scalar") for module in _NUMPY),
    *((_reconstruct, f"{module}._reconstruct") for module in _NUMPY),
]
"""The names that a file may refer to besides torch's own, and their stand-ins."""


def load(path: Any, *, mmap: bool) -> Any:
    """Read a ``torch.save`` file: tensors, plain values, and the names of this module.

    Raises:
        pickle.UnpicklingError: it names something else, which has not run.
    """
    with torch.serialization.safe_globals(_STAND_INS):  # type: ignore[arg-type]
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
