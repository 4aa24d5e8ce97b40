"""Measure the cost of one convolution by the clock, and store it in the profile."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from dsconvert.bench.machine import running, weight_type
from dsconvert.bench.memory import kept_for_backward
from dsconvert.model.editing import trainable
from dsconvert.model.upsampling import before_upsample
from dsconvert.records import Site
from dsconvert.search.clock import Clock
from dsconvert.search.profile import Profile
from dsconvert.search.records import Candidate, Probe, Reading


@dataclass(frozen=True, kw_only=True)
class Timer:
    """Measures modules under a probe, by a clock, with a profile of known times."""

    probe: Probe
    profile: Profile
    clock: Clock

    def read(self, module: nn.Module, form: str, site: Site, *, again: bool = False) -> Candidate:
        """Return the times and counted costs of ``module`` in place of ``site`` (and its upsample).

        Args:
            module: does not change.
            form: a name for it, part of the profile's key.
            site: the convolution's record; all its calls count.
            again: measure again, since the known times are implausible.

        Returns:
            A candidate with costs; rule, loss and MACs are not set.
        """
        calls = site.calls or 1
        times: dict[str, Reading] = {}
        for metric in self.probe.timed:
            key, measure = self._question(module, form, site, metric)
            ask = self.profile.again if again else self.profile.get
            times[metric] = ask(key, measure).times(calls)
        costs = {m: t.value for m, t in times.items()}
        params = sum(p.numel() for p in module.parameters())
        if "memory" in self.probe.metrics:
            costs["memory"] = calls * self._kept(module, site) + 2 * width(self.probe) * params
        if "params" in self.probe.metrics:
            costs["params"] = params
        return Candidate(rule=None, rank=None, loss=0.0, costs=costs, times=times)

    def check(self, module: nn.Module, form: str, site: Site) -> None:
        """Compare the times of an earlier run with new measurements."""
        for metric in self.probe.timed:
            self.profile.check(*self._question(module, form, site, metric))

    def _question(
        self, module: nn.Module, form: str, site: Site, metric: str
    ) -> tuple[str, Callable[[], Sequence[float]]]:
        train = metric == "train-time"
        batch = self.probe.train_batch if train else self.probe.batch
        shape = (batch, *before_upsample(site))
        key = _key(site, form, "step" if train else "forward", batch, self.probe)
        return key, lambda: self.clock.part(module, shape, self.probe, metric=metric)

    def _kept(self, module: nn.Module, site: Site) -> float:
        s = self.probe.settings
        kind = weight_type(s)
        module = copy.deepcopy(module).to(s.device, kind).train()
        trainable(module, True)
        shape = (self.probe.train_batch, *before_upsample(site))
        x = torch.randn(shape, device=s.device, dtype=kind, requires_grad=True)

        def run() -> Any:
            with running(s):
                return module(x)

        return float(kept_for_backward(run, [*module.parameters(), *module.buffers()]))


def width(probe: Probe) -> int:
    """Return the bytes of one parameter."""
    return 2 if weight_type(probe.settings) in (torch.float16, torch.bfloat16) else 4


def _bare(site: Site) -> dict[str, Any]:
    """Return the facts that determine a site's costs: two sites that agree are timed once."""
    facts = asdict(site)
    for name in ("name", "noise", "batchnorm", "absorbs_scale", "params", "macs", "calls"):
        facts.pop(name)
    facts["upsample"] = site.upsample is not None
    for name in ("input_shape", "output_shape"):
        facts[name] = (facts[name] or ())[1:]
    return facts


def _key(site: Site, form: str, what: str, batch: int, probe: Probe) -> str:
    layout = "channels_last" if probe.channels_last else "contiguous"
    shape = " ".join(f"{k}={v}" for k, v in _bare(site).items())
    return f"{what} batch={batch} {layout} | {form} | {shape}"
