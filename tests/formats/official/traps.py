"""Classes whose every automatic method makes a folder: what a hostile pickle would use.

Each trap is harmless (``os.mkdir`` of a path under the test's own folder) and each would be
sprung by a plain ``pickle.load``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typing_extensions import Self


def spring(path: str) -> str:
    """Leave the marker."""
    Path(path).mkdir(exist_ok=True)
    return path


class New:
    """Springs in ``__new__``."""

    def __new__(cls, path: str = "", **_: Any) -> Self:
        if path:
            spring(path)
        return object.__new__(cls)


class Setstate:
    """Springs in ``__setstate__``."""

    def __setstate__(self, state: Any) -> None:
        spring(state if isinstance(state, str) else state["path"])


class Items:
    """Springs in ``__setitem__``, ``append``, ``extend`` and ``add``."""

    def __setitem__(self, key: Any, value: Any) -> None:
        spring(value)

    def append(self, value: str) -> None:
        spring(value)

    def extend(self, values: list[str]) -> None:
        spring(values[0])

    def add(self, value: str) -> None:
        spring(value)


class Hash:
    """Springs when it is hashed."""

    def __hash__(self) -> int:
        spring(self.path)  # type: ignore[attr-defined]
        return 0


class Slots:
    """Springs when an attribute is set through slot state."""

    def __setattr__(self, name: str, value: Any) -> None:
        spring(value)


class Victim:
    """Does what its class attribute says; BUILD on the class replaces that."""

    run = staticmethod(len)

    def __init__(self, path: str) -> None:
        type(self).run(path)
