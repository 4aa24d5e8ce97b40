"""Find the fastest plan that holds a promised quality after fit and polish.

Candidates are the presets at several widths. Their times are measured on whole models with random
weights, their losses predicted (:mod:`dsconvert.search.predictor`); a candidate stays if no faster
one has less loss. Along these candidates, by time, quality falls as plans get faster, so a
bisection makes few tries: each is fitted, polished and measured. The result is measured once more
on latents that neither fit, polish nor search saw; where it then misses the promise, the next
slower candidate takes its place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from dsconvert.core.conversion import apply_to
from dsconvert.core.polish import apply_and_polish
from dsconvert.core.polish_options import PolishOptions
from dsconvert.errors import PolishError
from dsconvert.model.copying import copy_tensors, epsilons_of, set_epsilons, tensors_by_name
from dsconvert.records import Conversion
from dsconvert.search.promise_candidates import Work, in_order
from dsconvert.search.quality_targets import worst
from dsconvert.search.tries import Try, TryStore
from dsconvert.util.progress import Progress
from dsconvert.width import Kept


@dataclass(frozen=True, kw_only=True)
class Found:
    """The result of a search.

    Attributes:
        chosen: the fastest that holds the promise on unseen latents, or the nearest.
        conversion: of it.
        missed: the reason if nothing holds the promise; None: it is held.
        tries: all candidates, the fastest first.
        reused: tries that an earlier run had made.
    """

    chosen: Try
    conversion: Conversion
    missed: str | None
    tries: tuple[Try, ...]
    reused: int


class PromiseSearch:
    """Tries candidates along their order; every try is stored as soon as it is made."""

    def __init__(
        self, work: Work, store: TryStore, tries: list[Try], progress: Progress | None
    ) -> None:
        self._work, self._store, self._tries = work, store, tries
        self._progress = progress
        self._live: dict[str, Conversion] = {}
        self._stored = {t.name for t in tries if t.quality is not None}
        self._used: set[str] = set()

    @property
    def reused(self) -> int:
        """The number of tries that an earlier run had made and this one used."""
        return len(self._used & self._stored)

    def run(self) -> Found | None:
        """Return the result; None where no candidate is worth a try."""
        order = in_order(self._work, self._tries)
        if not order:
            return None
        low, high = 0, len(order)  # order[high] holds the promise, or nothing does
        while low < high:
            middle = (low + high) // 2
            if self._holds(order[middle]):
                high = middle
            else:
                low = middle + 1
        for one in order[high:]:
            if not self._holds(one):
                continue
            self._conversion(one)  # made again where its weights are gone: then measured again, too
            if self._holds(one) and self._kept(one):
                return self._found(one, None, order)
        tried = [t for t in order if t.quality is not None]
        nearest = min(tried, key=self._distance)
        self._conversion(nearest)
        self._holds(nearest)
        self._kept(nearest)
        return self._found(nearest, self._reason(nearest), order)

    def _distance(self, one: Try) -> float:
        quality = one.promised or one.quality
        return float("inf") if quality is None else worst(self._work.qualities, quality)

    def _found(self, one: Try, missed: str | None, order: list[Try]) -> Found:
        conversion = dataclasses.replace(self._conversion(one), quality=one.promised)
        return Found(
            chosen=one, conversion=conversion, missed=missed, tries=tuple(order),
            reused=self.reused,
        )  # fmt: skip

    def _reason(self, nearest: Try) -> str:
        asked = ", ".join(q.text for q in self._work.qualities)
        metric = self._work.probe.metrics[0]
        quality = nearest.promised or nearest.quality
        shown = "" if quality is None else ", ".join(q.shown(quality) for q in self._work.qualities)
        share = nearest.figures[metric].value / nearest.before[metric].value
        within = " within the targets" if self._work.targets else ""
        return (
            f"{asked} can't be promised: no faster plan{within} holds it; the nearest is "
            f"{nearest.name}, {metric}={share:.3g}x, with {shown}."
        )

    def _holds(self, one: Try) -> bool:
        """Return whether the promise holds on the latents of the search."""
        self._used.add(one.name)
        if one.quality is None:
            self._stored.discard(one.name)
            model = self._conversion(one).model
            one.quality = self._work.search.measure(
                self._work.picture(model), progress=self._tell(one)
            )
            self._store.save(self._tries)
        return worst(self._work.qualities, one.quality) <= 1

    def _kept(self, one: Try) -> bool:
        """Return whether the promise is kept on latents that nothing saw before."""
        if one.promised is None:
            model = self._conversion(one).model
            one.promised = self._work.promise.measure(
                self._work.picture(model), progress=self._tell(one)
            )
            self._store.save(self._tries)
        return worst(self._work.qualities, one.promised) <= 1

    def _tell(self, one: Try) -> Callable[[str, int, int], None]:
        def report(stage: str, done: int, total: int) -> None:
            if self._progress is not None:
                self._progress(f"{one.name}: {stage}", done, total, "")

        return report

    def _conversion(self, one: Try) -> Conversion:
        """Return the fitted and polished model of a try: from this run, the store, or made now."""
        if one.name in self._live:
            return self._live[one.name]
        # Without a record of the fit, weights are those of an earlier search that was begun anew.
        state = None if one.eps is None else self._store.weights(one)
        made = None if state is None else self._restored(one, state)
        if made is None:
            made = self._made(one)
        self._live = {one.name: made}  # one model at a time is enough: the others are stored
        return made

    def _restored(self, one: Try, state: dict[str, Tensor]) -> Conversion | None:
        """Return the stored model of a try; None if its parts do not fit together."""
        kept: Kept | None = one.kept or None
        # Trained weights: random ones may get spectral norm where a fit leaves it folded.
        made = apply_to(
            self._work.analysis, one.plan, init="svd", calibrate=0, seed=self._work.seed,
            kept=kept,
        )  # fmt: skip
        try:
            copy_tensors(state, made.model)
            set_epsilons(one.eps or {}, made.model)
        except ValueError:
            return None
        note = f"fitted by an earlier run, in {one.seconds:.0f} s"
        return dataclasses.replace(
            made, fits=(), psnr=one.psnr, polish=one.polish, notes=(note,), seconds={}
        )

    def _made(self, one: Try) -> Conversion:
        def report(stage: str, done: int, total: int, detail: str) -> None:
            if self._progress is not None:
                self._progress(f"{one.name}: {stage}", done, total, detail)

        work = self._work

        def converted(polishing: PolishOptions) -> Conversion:
            return apply_and_polish(
                work.analysis, one.plan, polishing, calibrate=work.calibrate, seed=work.seed,
                progress=report,
            )  # fmt: skip

        try:
            made = converted(work.polishing)
        except PolishError:
            made = converted(PolishOptions())
        if made.polish is not None and made.polish.ended == "interrupted":
            raise KeyboardInterrupt
        one.kept = dict(made.kept)
        one.eps = epsilons_of(made.model)
        one.psnr, one.polish = made.psnr, made.polish
        one.seconds = sum(made.seconds.values())
        # A quality that was stored without its weights belongs to another polish.
        one.quality = one.promised = None
        self._store.keep(one, tensors_by_name(made.model))
        self._store.save(self._tries)
        return made
