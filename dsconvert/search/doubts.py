"""Which measurements contradict each other, or themselves, and have to be taken again.

Other work on a machine makes a time too long, seldom too short, and never twice alike. So a time
that cannot be true is measured again; how often is bounded (:data:`TRIES`), and what is then still
in doubt is said in a note.
"""

from __future__ import annotations

from collections.abc import Sequence

from dsconvert.search.records import Candidate, Probe, Reading

TRIES = 3
"""Measurements of one thing, at most; the middle one counts."""
_WIDE = 0.2
"""A spread (interquartile range by median) above which a time is measured again."""
_FACTOR = 1.3
"""Fewer MACs in the same kind of layer may be slower by this factor, but hardly by more."""
_OTHER_RUN = 1.25
"""Two measurements of one thing that differ by more than this, and their spread, disagree."""
_SUM = 1.15
"""Parts may seem to take this much more than the whole (another cache, another allocator)."""


def noisy(reading: Reading) -> bool:
    """Whether the runs of one measurement differ too much to be relied on."""
    return reading.spread > _WIDE


def middle(readings: Sequence[Reading]) -> Reading:
    """The one with the median value; of an even number the shorter."""
    return sorted(readings, key=lambda r: r.value)[(len(readings) - 1) // 2]


def disagree(one: Reading, other: Reading) -> bool:
    """Whether two measurements of the same thing differ by more than their spread."""
    short, long = sorted((one, other), key=lambda r: r.value)
    return short.below(long) and long.value > _OTHER_RUN * short.value


def differ(one: float, other: float) -> bool:
    """Whether two sums of times, each with its own errors, are more than some noise apart."""
    return max(one, other) > _SUM * min(one, other)


def implausible(fewer: Candidate, more: Candidate) -> bool:
    """Whether a form is timed much slower than one of the same kind that has more MACs."""
    if fewer.macs is None or more.macs is None or fewer.macs >= more.macs:
        return False
    return much_slower(fewer, more)


def much_slower(one: Candidate, other: Candidate) -> bool:
    """Whether ``one`` is timed slower than ``other`` by more than the spread and some margin."""
    return any(
        other.times[m].below(t) and t.value > _FACTOR * other.times[m].value
        for m, t in one.times.items()
    )


def exceeds(parts: float, whole: Reading) -> bool:
    """Whether parts that are all in the whole take more time than it does."""
    return parts > _SUM * max(whole.value, whole.high)


def worthwhile(
    candidates: Sequence[Candidate], original: Candidate, probe: Probe
) -> list[Candidate]:
    """The candidates without those that have more MACs for no gain in time.

    A form is left out if it has more MACs than the original convolution and is not faster than it
    by more than the spread of both; likewise beside another form that loses no more and costs no
    more in what is counted. The dense form stays wherever nothing is better.
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
