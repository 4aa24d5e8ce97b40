"""Store measured times of single convolutions on disk, so that each is measured once.

There is one JSON file for each device, type, torch version and number of threads, in the user's
cache folder. An unreadable or foreign file is replaced, with a note. If the folder is read-only,
times are measured again in the next run.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from math import isfinite, log
from pathlib import Path
from typing import Any

from dsconvert.bench import Settings, facts
from dsconvert.errors import OutputError
from dsconvert.search.consistency import TRIES, disagree, middle, noisy
from dsconvert.search.records import Reading
from dsconvert.util.cache import cache_folder
from dsconvert.util.files import whole_file
from dsconvert.util.foreign_text import from_json

FORMAT = 2
_CONDITIONS = (
    "device", "dtype", "compile", "threads", "machine", "cores", "instructions", "torch", "cuda",
)  # fmt: skip
_ALLOCATOR = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_")
"""Variables of glibc that change every time by up to a factor of two."""
Measure = Callable[[], Sequence[float]]


def conditions(settings: Settings) -> dict[str, Any]:
    """Return the facts that a time depends on: only times under equal ones may be compared.

    Args:
        settings: with all defaults resolved.
    """
    known = facts(settings)
    allocator = {n: os.environ[n] for n in _ALLOCATOR if n in os.environ}
    return {**{k: known[k] for k in _CONDITIONS}, "allocator": allocator}


class Profile:
    """Times by key; an unknown time is measured and stored.

    Args:
        settings: with all defaults resolved; they and the machine determine the file name.
        folder: of the file; None: :func:`dsconvert.util.cache.cache_folder`.
        remeasure: ignore stored times.

    Attributes:
        measured: number of measurements in this run, repetitions included.
        notes: remarks on the figures, for people.
    """

    def __init__(
        self, settings: Settings, *, folder: Path | None = None, remeasure: bool = False
    ) -> None:
        self.header: dict[str, Any] = {"format": FORMAT, **conditions(settings)}
        name = hashlib.sha256(json.dumps(self.header, sort_keys=True).encode()).hexdigest()[:16]
        self.path = (folder or cache_folder()) / f"profile-{name}.json"
        self.measured = 0
        self.notes: list[str] = []
        known_times, settled, problem = self._read()
        if problem is not None:
            self.notes.append(f"the profile {self.path} {problem}; its times are measured again")
        self._values: dict[str, Reading] = {} if remeasure else known_times
        self._earlier = set(self._values)
        self._doubted: set[str] = set() if remeasure else settled
        self._unsettled: set[str] = set()
        self._unsaved = False
        self._distrusted = False

    def _read(self) -> tuple[dict[str, Reading], set[str], str | None]:
        """Read the file.

        Returns:
            The times, the keys of those that were measured again, and the file's defect (None: no
            defect, or no file).
        """
        try:
            data = from_json(self.path.read_text(encoding="utf-8"))
            header, stored, settled = data["header"], dict(data["times"]), set(data["settled"])
        except FileNotFoundError:
            return {}, set(), None
        except OSError as error:
            return {}, set(), f"can't be read ({error.strerror})"
        except (ValueError, TypeError, KeyError, AttributeError):
            return {}, set(), "is damaged"
        if header != self.header:
            return {}, set(), "is of another machine or version"
        times = {str(k): r for k, v in stored.items() if (r := _reading(v)) is not None}
        problem = "is damaged in part" if len(times) < len(stored) else None
        return times, {k for k in settled if k in times}, problem

    @property
    def unsettled(self) -> int:
        """Number of times that still vary widely after repetition."""
        return len(self._unsettled)

    def get(self, key: str, measure: Measure) -> Reading:
        """Return the stored time of ``key``, or measure it (again, if its runs differ widely)."""
        if key in self._values:
            return self._values[key]
        reading = self._values[key] = self._measured(measure)
        return self.again(key, measure) if noisy(reading) else reading

    def again(self, key: str, measure: Measure) -> Reading:
        """Measure the implausible time of ``key`` twice more, and return the median.

        This happens once for each key: a repeated time is final, also for a later run that finds
        it in the file.
        """
        if key not in self._doubted:
            self._doubted.add(key)
            tries = [self.get(key, measure)] if key in self._values else []
            tries += [self._measured(measure) for _ in range(TRIES - len(tries))]
            self._values[key] = middle(tries)
            if noisy(self._values[key]):
                self._unsettled.add(key)
        return self._values[key]

    def check(self, key: str, measure: Measure) -> None:
        """Compare a time of an earlier run with a new measurement.

        If the two disagree by more than their spread, a third measurement decides; if that is
        nearer to the second, all times of the earlier run are discarded.
        """
        if key not in self._earlier:
            return
        old, now = self._values[key], Reading.of(measure())
        if not disagree(old, now):
            return
        third = self._measured(measure)
        if _distance(third, old) <= _distance(third, now):
            return
        for stale in self._earlier:
            self._values.pop(stale, None)
            self._doubted.discard(stale)
        self._earlier.clear()
        self._distrusted = True
        self._values[key] = middle([now, third])
        self.notes.append(
            f"the times of an earlier run in {self.path} differ from this machine's now by a "
            f"factor of {old.value / now.value:.2g}; all are measured again"
        )

    def _measured(self, measure: Measure) -> Reading:
        self.measured += 1
        self._unsaved = True
        return Reading.of(measure())

    def save(self) -> None:
        """Write the measured times, merged with those that another run wrote meanwhile."""
        if not self._unsaved:
            return
        others, settled = ({}, set[str]()) if self._distrusted else self._read()[:2]
        merged = others | self._values
        data = {
            "header": self.header,
            "times": {k: (r.value, r.low, r.high) for k, r in merged.items()},
            "settled": sorted(settled | self._doubted),
        }
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(self.path, overwrite=True) as beside:
                beside.write_text(json.dumps(data, indent=0), encoding="utf-8")
        except (OSError, OutputError):
            return  # the plan is still valid
        self._unsaved = False


def _reading(stored: Any) -> Reading | None:
    """Return a stored time as a reading, or None if it is invalid."""
    try:
        value, low, high = (float(x) for x in stored)
    except (TypeError, ValueError, OverflowError):
        return None
    if not (isfinite(high) and 0 < low <= value <= high):
        return None
    return Reading(value=value, low=low, high=high)


def _distance(one: Reading, other: Reading) -> float:
    return abs(log(one.value / other.value))
