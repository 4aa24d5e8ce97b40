"""Measured figures of single convolutions, kept on disk: a device is asked once.

One JSON file for each device, type, torch version and number of threads, in the user's cache
folder. A file that can't be read, or is another one's, is made anew; a folder that can't be written
costs time, never a result.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import Any

from dsconvert.bench import Settings, facts
from dsconvert.errors import OutputError
from dsconvert.util.files import whole_file

FORMAT = 1
_HEADER = ("device", "dtype", "compile", "threads", "machine", "instructions", "torch", "cuda")


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/dsconvert`` (``~/.cache/dsconvert``)."""
    # An empty or relative value is to be ignored, says the XDG base directory specification.
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if Path(home).is_absolute() else Path.home() / ".cache") / "dsconvert"


class Profile:
    """Figures by key; what is not known is measured and kept.

    Args:
        settings: settled; they and the machine name the file.
        folder: where; None: :func:`cache_folder`.
        remeasure: take nothing from the disk.
    """

    def __init__(
        self, settings: Settings, *, folder: Path | None = None, remeasure: bool = False
    ) -> None:
        known = facts(settings)
        self.header: dict[str, Any] = {"format": FORMAT, **{k: known[k] for k in _HEADER}}
        name = hashlib.sha256(json.dumps(self.header, sort_keys=True).encode()).hexdigest()[:16]
        self.path = (folder or cache_folder()) / f"profile-{name}.json"
        self.measured = 0
        self._values: dict[str, float] = {} if remeasure else self._read()

    def _read(self) -> dict[str, float]:
        try:
            data = json.loads(self.path.read_text(encoding="utf-8"))
            if data["header"] != self.header:
                return {}
            values = {str(k): float(v) for k, v in data["values"].items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return {}
        return {k: v for k, v in values.items() if isfinite(v) and v >= 0}

    def get(self, key: str, measure: Callable[[], float]) -> float:
        """The figure of ``key``: remembered, or measured now."""
        if key not in self._values:
            self._values[key] = measure()
            self.measured += 1
        return self._values[key]

    def save(self) -> None:
        """Write what was measured, with what another run has written meanwhile."""
        if not self.measured:
            return
        data = {"header": self.header, "values": {**self._read(), **self._values}}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(self.path, overwrite=True) as beside:
                beside.write_text(json.dumps(data, indent=0), encoding="utf-8")
        except (OSError, OutputError):
            return  # a read-only home is no reason to lose a plan
        self.measured = 0
