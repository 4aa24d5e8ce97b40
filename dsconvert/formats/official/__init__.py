"""Reading a foreign snapshot without running anything in it, and writing one back.

``load_snapshot`` and ``save_snapshot`` are the main door; ``inspect_snapshot`` reads no tensor;
``new_snapshot`` wraps a generator that came from no file.
"""

from __future__ import annotations

from dsconvert.formats.official.api import Snapshot, load_snapshot, new_snapshot, save_snapshot
from dsconvert.formats.official.info import EntryInfo, SnapshotInfo, inspect_snapshot
from dsconvert.formats.official.policy import Offence

__all__ = [
    "EntryInfo",
    "Offence",
    "Snapshot",
    "SnapshotInfo",
    "inspect_snapshot",
    "load_snapshot",
    "new_snapshot",
    "save_snapshot",
]
