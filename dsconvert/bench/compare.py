"""Measure several models, interleaved, so that a slow minute of the machine affects all."""

from __future__ import annotations

import time
from collections.abc import Sequence

from dsconvert.bench.records import Measurement, Operation, Timing
from dsconvert.bench.subject import Subject
from dsconvert.errors import UsageError
from dsconvert.util.progress import Progress, reports_progress

MINIMUM = 3
"""The least number of timed runs, however long they take."""


@reports_progress
def compare(
    subjects: Sequence[Subject],
    operations: Sequence[Operation],
    *,
    repeats: int = 9,
    warmup: int = 1,
    limit: float = 60.0,
    memory: bool = True,
    progress: Progress | None = None,
) -> tuple[Measurement, ...]:
    """Measure every operation of every subject.

    Peaks are measured first; they are also a warm-up, as a first run is never timed. Then each
    operation is timed ``repeats`` times, one run of each subject in turn, every other round in
    reverse order.

    Args:
        subjects: the first one is the reference, by convention.
        operations: to measure.
        repeats: timed runs of each operation.
        warmup: further runs before the timed ones.
        limit: seconds for the timed runs of one operation; after that time the rounds stop, but
            never before the third.
        memory: whether to measure peaks and kept activations.
        progress: called before each run.

    Raises:
        UsageError: two subjects have the same name.
        MeasureError: a model fails, or its process ends.
    """
    names = [s.name for s in subjects]
    if len(set(names)) < len(names):
        raise UsageError(f"two models have the same name among {', '.join(names)}; rename one.")
    peaks: dict[str, dict[Operation, int | None]] = {s.name: {} for s in subjects}
    kept: dict[str, dict[Operation, int]] = {s.name: {} for s in subjects}
    times: dict[str, dict[Operation, list[float]]] = {
        s.name: {o: [] for o in operations} for s in subjects
    }
    total = len(operations) * (1 + repeats)

    def tell(done: int, detail: str) -> None:
        if progress is not None:
            progress("measure", done, total, detail)

    for index, operation in enumerate(sorted(operations)):
        done = index * (1 + repeats)
        for subject in subjects:
            tell(done, f"{operation}: warm-up, {subject.name}")
            subject.seconds(operation)
            if memory:
                peaks[subject.name][operation] = subject.peak(operation)
                if operation.kind == "step":
                    kept[subject.name][operation] = subject.kept(operation)
            for _ in range(warmup):
                subject.seconds(operation)
        began = time.perf_counter()
        for turn in range(repeats):
            tell(done + 1 + turn, f"{operation}: run {turn + 1} of {repeats}")
            for subject in subjects if turn % 2 == 0 else reversed(subjects):
                times[subject.name][operation].append(subject.seconds(operation))
            if turn + 1 >= MINIMUM and time.perf_counter() - began > limit:
                break
    tell(total, "")
    return tuple(
        Measurement(
            name=s.name,
            params=s.params,
            times={o: Timing.of(runs) for o, runs in times[s.name].items()},
            peaks=peaks[s.name],
            kept=kept[s.name],
            notes=s.notes,
        )
        for s in subjects
    )
