"""Load the objects that installed packages advertise under an entry-point group."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any

from dsconvert.errors import AdapterError


def installed(group: str) -> Iterator[tuple[Any, str]]:
    """Yield the adapters of a group in order of their names, each with its origin for messages.

    Raises:
        AdapterError: one can't be imported.
    """
    for point in sorted(entry_points(group=group), key=lambda p: p.name):
        origin = f"adapter {point.name!r} ({point.value})"
        try:
            loaded = point.load()
        except Exception as error:
            raise AdapterError(
                f"{origin} can't be imported: {error}. Uninstall or mend the package that "
                "provides it."
            ) from error
        yield loaded, origin
