"""Find measurements that contradict each other and must be repeated.

Other work on a machine makes a time too long, seldom too short, and varies. An implausible time is
measured again, at most :data:`TRIES` times in all; a note names a remaining contradiction.
"""

from __future__ import annotations

from collections.abc import Sequence

from dsconvert.search.records import Candidate, Probe, Reading

TRIES = 3
"""The largest number of measurements of one time; the median counts."""
_WIDE = 0.2
"""A spread (interquartile range by median) above which a time is measured again."""
_FACTOR = 1.3
"""A layer with fewer MACs may be slower than one of its kind by this factor, not by more."""
_OTHER_RUN = 1.25
"""Two measurements disagree if they differ by more than this factor and by their spread."""
_SUM = 1.15
"""The sum of the parts may exceed the whole by this factor (caches, allocator)."""


def noisy(reading: Reading) -> bool:
    """Return whether the runs of one measurement differ too much to be relied on."""
    return reading.spread > _WIDE


def middle(readings: Sequence[Reading]) -> Reading:
    """Return the reading with the median value; of two middle ones the shorter."""
    return sorted(readings, key=lambda r: r.value)[(len(readings) - 1) // 2]


def disagree(one: Reading, other: Reading) -> bool:
    """Return whether two measurements of the same thing differ by more than their spread."""
    short, long = sorted((one, other), key=lambda r: r.value)
    return short.below(long) and long.value > _OTHER_RUN * short.value


def differ(one: float, other: float) -> bool:
    """Return whether two sums of times differ by more than measurement noise."""
    return max(one, other) > _SUM * min(one, other)


def implausible(fewer: Candidate, more: Candidate) -> bool:
    """Return whether a form is timed much slower than one of the same kind that has more MACs."""
    if fewer.macs is None or more.macs is None or fewer.macs >= more.macs:
        return False
    return much_slower(fewer, more)


def much_slower(one: Candidate, other: Candidate) -> bool:
    """Return whether ``one`` is timed slower than ``other``, beyond spread and margin."""
    return any(
        other.times[m].below(t) and t.value > _FACTOR * other.times[m].value
        for m, t in one.times.items()
    )


def exceeds(parts: float, whole: Reading) -> bool:
    """Return whether the parts take more time than the whole that contains them."""
    return parts > _SUM * max(whole.value, whole.high)


def worthwhile(
    candidates: Sequence[Candidate], original: Candidate, probe: Probe
) -> list[Candidate]:
    """Return the candidates without those that have more MACs and no gain in time.

    A form is dropped if it has more MACs than the original convolution and is not faster by more
    than the spread of both. It is also dropped if another form has fewer MACs, no larger loss and
    no larger counted cost, unless it is faster than that form. The dense form stays if no other
    form is better.
    """

    def gains(form: Candidate, other: Candidate) -> bool:
        return any(form.times[m].below(other.times[m]) for m in probe.timed)

    def beaten(form: Candidate, other: Candidate) -> bool:
        if form.macs is None or other.macs is None or form.macs <= other.macs:
            return False
        counted = [m for m in probe.metrics if m not in probe.timed]
        return (
            other.loss <= form.loss
            and all(other.costs[m] <= form.costs[m] for m in counted)
            and not gains(form, other)
        )

    def raises(form: Candidate) -> bool:
        if form.rule is None or form.macs is None or original.macs is None:
            return False
        return form.macs > original.macs and not gains(form, original)

    left = [c for c in candidates if not raises(c)]
    return [c for c in left if not any(beaten(c, other) for other in left)]
