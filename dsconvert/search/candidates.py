"""The possible forms of one convolution, with their cost on this device and their loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dsconvert.core.rewrite import kernel_of
from dsconvert.fit import Sample
from dsconvert.model.call_arguments import in_order
from dsconvert.model.copying import isolated_copy
from dsconvert.model.graph import ConvTypes
from dsconvert.model.inputs import fresh_args
from dsconvert.model.norms import fold, norm_kind
from dsconvert.model.observe import evaluating
from dsconvert.model.one_dimensional import Conv1dTypes, Convolution, as_2d, map_as_2d
from dsconvert.model.upsampling import upsample_of
from dsconvert.records import Site
from dsconvert.rules import Rule, rule_named, rules
from dsconvert.search.consistency import implausible
from dsconvert.search.records import Candidate
from dsconvert.search.timer import Timer

_CROP = 32
"""Side, in pixels, of the crop on which errors are measured; one dimension has as many pixels."""
_EXACT = 1e-9
"""Losses below this are rounding: an exact rule has the same loss as the dense form."""


class Candidates:
    """The possible forms of one convolution.

    Args:
        conv: does not change.
        site: its record.
        timer: measures the cost of a form.
        sample: inputs and wanted outputs; None: the loss is the kernel's lost energy.
        fixed: only the dense form.
    """

    def __init__(
        self,
        conv: Convolution,
        site: Site,
        timer: Timer,
        *,
        sample: Sample | None,
        fixed: bool,
    ) -> None:
        self.site = site
        self._conv = conv
        self._timer = timer
        self._sample = sample
        self._fixed = fixed
        # Without a norm the original and the dense form are the same: one measurement serves both.
        self._as_it_is = "original" if norm_kind(conv) != "none" else "dense"

    def check(self) -> None:
        """Compare the original's stored times, if there are any, with new measurements."""
        self._timer.check(self._original_module(), self._as_it_is, self.site)

    def original(self, *, again: bool = False) -> Candidate:
        """Return the unchanged convolution, with its norm, as a candidate."""
        read = self._timer.read(self._original_module(), self._as_it_is, self.site, again=again)
        return self._with_macs(read, self.site.macs)

    def again(self, candidate: Candidate) -> Candidate:
        """Measure a form with implausible times again."""
        if candidate.rule is None or candidate.rank is None:
            return self._dense(again=True)
        rule = rule_named(candidate.rule)
        module, _ = self._module(rule, candidate.rank)
        fresh = self._read(rule, candidate.rank, module, again=True)
        return dataclasses.replace(fresh, loss=candidate.loss)

    def candidates(self) -> list[Candidate]:
        """Return the useful forms, the dense one first.

        Ranks are tried upwards until one is no cheaper, in any metric, than a lossless form. Before
        a form with fewer MACs is rejected so, and where a rank seems slower than the next one, both
        are measured again.
        """
        found = [self._dense()]
        if self._fixed:
            return found
        # Exact rules come first: the others must be cheaper than they are.
        for rule in sorted(rules(), key=lambda r: not r.exact):
            if rule.why_not(self.site) is not None:
                continue
            before: int | None = None
            for rank in range(1, rule.max_rank(self.site) + 1):
                made = self._candidate(rule, rank)
                if before is not None and implausible(found[before], made):
                    found[before], made = self.again(found[before]), self.again(made)
                if self._beaten(made, found) is not None:
                    made = self._second_look(made, found)
                    if self._beaten(made, found) is not None:
                        break
                before = len(found)
                found.append(made)
        return found

    def _beaten(self, made: Candidate, found: Sequence[Candidate]) -> int | None:
        """Return the index of a lossless form that is no costlier in any metric."""
        for index, form in enumerate(found):
            costlier = any(form.costs[m] > made.costs[m] for m in self._timer.probe.metrics)
            if form.loss <= _EXACT and not costlier:
                return index
        return None

    def _second_look(self, made: Candidate, found: list[Candidate]) -> Candidate:
        index = self._beaten(made, found)
        if index is None or not implausible(made, found[index]):
            return made
        found[index] = self.again(found[index])
        return self.again(made)

    def _original_module(self) -> nn.Module:
        return _with_upsample(self.site, _flat(isolated_copy(self._conv)))

    def _dense(self, *, again: bool = False) -> Candidate:
        module = _with_upsample(self.site, _folded(self._conv))
        return self._with_macs(
            self._timer.read(module, "dense", self.site, again=again), self.site.macs
        )

    def _candidate(self, rule: Rule, rank: int) -> Candidate:
        module, loss = self._module(rule, rank)
        if self._sample is not None and loss > 0:
            with torch.no_grad():
                loss = self._sample.error(module.eval())
        found = self._read(rule, rank, module)
        return dataclasses.replace(found, loss=loss if loss > _EXACT else 0.0)

    def _module(self, rule: Rule, rank: int) -> tuple[nn.Module, float]:
        """Return a rewritten form with its upsample, and the energy that its kernel loses."""
        kernel = kernel_of(self._conv).float()
        bias = self._conv.bias.detach().float() if self._conv.bias is not None else None
        built = _built(rule, self.site, kernel, bias, rank)
        whole = built.module if rule.absorbs_upsample else _with_upsample(self.site, built.module)
        return whole, built.residual

    def _read(self, rule: Rule, rank: int, module: nn.Module, *, again: bool = False) -> Candidate:
        read = self._timer.read(module, f"{rule.name} rank {rank}", self.site, again=again)
        named = dataclasses.replace(read, rule=rule.name, rank=rank)
        return self._with_macs(named, rule.macs(self.site, rank))

    def _with_macs(self, candidate: Candidate, macs: int | None) -> Candidate:
        costs = dict(candidate.costs)
        if "macs" in self._timer.probe.metrics:
            costs["macs"] = float(macs or 0)
        known = None if macs is None else float(macs)
        return dataclasses.replace(candidate, macs=known, costs=costs)


def _with_upsample(site: Site, module: nn.Module) -> nn.Module:
    if site.upsample is None:
        return module
    return nn.Sequential(upsample_of(site), module)


def _folded(conv: nn.Module) -> nn.Module:
    dense = isolated_copy(conv)
    if norm_kind(dense) != "none":
        fold(dense)
    return _flat(dense)


def _flat(conv: nn.Module) -> nn.Module:
    """Return a one-dimensional convolution in two dimensions, without its norm."""
    if isinstance(conv, Conv1dTypes) and norm_kind(conv) != "none":
        fold(conv)
    return as_2d(conv)


@torch.no_grad()
def _built(rule: Rule, site: Site, kernel: Tensor, bias: Tensor | None, rank: int) -> Any:
    return rule.build(site, kernel, bias, rank)


def _crop(site: Site) -> tuple[int, int]:
    """Return height and width of the crop of a site's input, behind its upsample.

    At least twice what the kernel spans: a smaller crop has no output where nothing is padded.
    """
    sides = (_CROP, _CROP) if site.dims == 2 else (1, _CROP**2)
    spans = (d * (k - 1) + 1 for d, k in zip(site.dilation, site.kernel_size, strict=True))
    height, width = (max(side, 2 * span) for side, span in zip(sides, spans, strict=True))
    return height, width


def samples(
    model: nn.Module, sites: Sequence[Site], batches: Sequence[tuple[Any, ...]]
) -> dict[str, Sample]:
    """Return inputs (in front of the upsample) and outputs of every site, cropped, float32.

    The original runs once; the random state and the modes of its modules do not change.
    """
    inputs: dict[str, list[Tensor]] = {s.name: [] for s in sites}
    modules = dict(model.named_modules())

    def take(site: Site) -> Callable[..., None]:
        # A crop of a doubled map is a doubled map if it begins at an even position.
        step = 2 if site.doubled else 1
        high, wide = (n // 2 if site.upsample else n for n in _crop(site))

        def hook(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            args, _ = in_order(module, args, named)
            known = inputs[site.name]
            if args and isinstance(args[0], Tensor) and len(known) < len(batches):
                x = map_as_2d(args[0])
                top, left = (
                    (n - min(n, side)) // (2 * step) * step
                    for n, side in zip(x.shape[-2:], (high, wide), strict=True)
                )
                known.append(x[..., top : top + high, left : left + wide].detach().float().clone())

        return hook

    handles = [
        modules[s.upsample or s.name].register_forward_pre_hook(take(s), with_kwargs=True)
        for s in sites
    ]
    try:
        with evaluating(model):
            torch.manual_seed(0)
            for args in batches:
                model(*fresh_args(args))
    finally:
        for handle in handles:
            handle.remove()
    found: dict[str, Sample] = {}
    for s in sites:
        conv = modules[s.name]
        if not inputs[s.name] or not isinstance(conv, ConvTypes):
            continue
        x = torch.cat(inputs[s.name])
        with torch.no_grad():
            wanted = _with_upsample(s, _folded(conv).float().eval())(x)
        found[s.name] = Sample(
            inputs=[],
            wanted=[],
            held_input=x,
            held_wanted=wanted,
            centred=s.batchnorm is not None and not s.bias,
        )
    return found
