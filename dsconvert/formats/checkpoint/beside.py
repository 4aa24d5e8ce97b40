"""The settings file that some codebases keep beside a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dsconvert.errors import CorruptSnapshotError
from dsconvert.util.foreign_text import from_json

_LARGEST = 1 << 20
"""Bytes; beyond, the file is something else."""


def settings(path: Path, name: str) -> dict[str, Any] | None:
    """Return the JSON object in the file ``name`` beside the checkpoint ``path``, or None.

    Raises:
        CorruptSnapshotError: there is such a file, and it holds something else.
    """
    where = path.parent / name
    if not where.is_file():
        return None
    why = f"it has more than {_LARGEST} bytes"
    if where.stat().st_size <= _LARGEST:
        try:
            found = from_json(where.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            why = f"{type(error).__name__}: {error}"
        else:
            if isinstance(found, dict):
                return found
            why = f"it holds a {type(found).__name__}"
    raise CorruptSnapshotError(
        f"{where} is no JSON object with the settings of {path} ({why}). Copy it again from where "
        "the checkpoint comes from."
    )
