"""The measured costs of single convolutions, compared with the whole model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dsconvert.search.attempts import Attempt
from dsconvert.search.candidates import Candidates
from dsconvert.search.consistency import differ, exceeds, worthwhile
from dsconvert.search.records import Candidate, Probe

Options = Sequence[Sequence[Candidate]]


@dataclass(kw_only=True)
class Parts:
    """The candidates of every convolution, and their measurements so far."""

    forms: list[Candidates] = field(default_factory=list[Candidates])
    originals: list[Candidate] = field(default_factory=list[Candidate])
    options: list[list[Candidate]] = field(default_factory=list[list[Candidate]])

    def again(self, chosen: Sequence[int], probe: Probe) -> None:
        """Measure the originals and the chosen forms again, and all others if these differ."""
        before = self._times(chosen, probe)
        for site, index in enumerate(chosen):
            self.originals[site] = self.forms[site].original(again=True)
            self._form_again(site, index)
        after = self._times(chosen, probe)
        # The other measurements of that time are unreliable, too.
        if any(differ(b, a) for b, a in zip(before, after, strict=True)):
            for site, options in enumerate(self.options):
                for index in range(len(options)):
                    self._form_again(site, index)

    def _form_again(self, site: int, index: int) -> None:
        self.options[site][index] = self.forms[site].again(self.options[site][index])

    def _times(self, chosen: Sequence[int], probe: Probe) -> list[float]:
        return [
            sum(c.costs[m] for c in self.originals) + total(self.options, chosen, m)
            for m in probe.timed
        ]


def total(options: Options, chosen: Sequence[int], metric: str) -> float:
    """Return the sum of the chosen forms' costs."""
    return sum(o[i].costs[metric] for o, i in zip(options, chosen, strict=True))


def worthwhile_of(parts: Parts, probe: Probe) -> list[list[Candidate]]:
    """Return the forms of each convolution that :func:`worthwhile` keeps."""
    return [
        worthwhile(forms, original, probe)
        for forms, original in zip(parts.options, parts.originals, strict=True)
    ]


def indices_of(parts: Parts, worth: Options, chosen: Sequence[int]) -> list[int]:
    """Return the indices, among all forms, of the chosen worthwhile forms."""
    return [
        next(i for i, c in enumerate(forms) if c is site[index])
        for forms, site, index in zip(parts.options, worth, chosen, strict=True)
    ]


def in_doubt(
    probe: Probe, parts: Parts, worth: Options, chosen: Sequence[int], lean: Attempt
) -> bool:
    """Return whether the parts of the original or of the plan exceed the whole."""
    for metric in probe.timed:
        whole, after = lean.before[metric].reading, lean.got[metric].reading
        before = sum(c.costs[metric] for c in parts.originals)
        if whole is not None and exceeds(before, whole):
            return True
        if after is not None and exceeds(total(worth, chosen, metric), after):
            return True
    return False


def shares_of(
    probe: Probe, worth: Options, chosen: Sequence[int], lean: Attempt
) -> dict[str, float]:
    """Return, by metric, the whole's share of the sum of its parts, where it is below 1."""
    found: dict[str, float] = {}
    for metric in probe.timed:
        reading, parts = lean.got[metric].reading, total(worth, chosen, metric)
        if reading is not None and exceeds(parts, reading):
            found[metric] = reading.value / parts
    return found


def scaled(candidate: Candidate, shares: Mapping[str, float]) -> Candidate:
    """Return a form with its costs multiplied by a share for each metric."""
    return dataclasses.replace(
        candidate,
        costs={m: c * shares.get(m, 1.0) for m, c in candidate.costs.items()},
        times={m: t.times(shares.get(m, 1.0)) for m, t in candidate.times.items()},
    )
