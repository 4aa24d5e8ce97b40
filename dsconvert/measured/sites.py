"""One convolution by itself: its forms, what each costs on this device, and what each loses."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dsconvert.bench import LocalSubject, Operation, Settings
from dsconvert.bench.machine import running, seconds_of, threads, weight_type
from dsconvert.bench.memory import kept_for_backward
from dsconvert.fit.sample import Sample
from dsconvert.graph import ConvTypes
from dsconvert.measured.profile import Profile
from dsconvert.measured.records import Candidate
from dsconvert.norms import fold, norm_kind
from dsconvert.observe import evaluating
from dsconvert.records import Site
from dsconvert.rewrite import copied, kernel_of
from dsconvert.rules import Rule, rules

_SHORTEST = 4e-3
"""Seconds of one timed run; shorter modules are called several times in it."""
_PATIENCE = 0.6
"""Seconds after which a slow module is not timed again (but three times at least)."""
_CROP = 32
"""Pixels of a map's side that errors are measured on: enough of them, quickly."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What is measured, and how."""

    metrics: tuple[str, ...]
    batch: int
    train_batch: int
    channels_last: bool
    settings: Settings
    repeats: int


def _bare(site: Site) -> dict[str, Any]:
    """What the costs of a site depend on: two sites that agree in this are timed once."""
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


def _input_shape(site: Site) -> tuple[int, ...]:
    """``(C, H, W)`` of what reaches the site, in front of its upsample."""
    _, c, h, w = site.input_shape or (1, site.in_channels, 1, 1)
    return (c, h // 2, w // 2) if site.upsample is not None else (c, h, w)


def repeated(run: Callable[[], Any], device: str, repeats: int) -> float:
    """Median seconds of one call, over runs that are long enough for the clock."""
    run()
    once = seconds_of(run, device)
    calls = max(1, min(1000, round(_SHORTEST / max(once, 1e-7))))

    def several() -> None:
        for _ in range(calls):
            run()

    runs: list[float] = []
    began = time.perf_counter()
    while len(runs) < repeats:
        runs.append(seconds_of(several, device) / calls)
        if len(runs) >= 3 and time.perf_counter() - began > _PATIENCE:
            break
    return statistics.median(runs)


def _seconds(module: nn.Module, site: Site, batch: int, probe: Probe, *, train: bool) -> float:
    s = probe.settings
    kind = weight_type(s)
    module = module.to(s.device, kind).train(train)
    module.requires_grad_(train)
    x = torch.randn(batch, *_input_shape(site), device=s.device, dtype=kind)
    if probe.channels_last:
        move: Any = module.to
        module, x = move(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    if not train:

        def run() -> None:
            with torch.no_grad(), running(s):
                module(x)

    else:
        x.requires_grad_(True)
        with running(s):
            weight = torch.ones_like(module(x))

        def run() -> None:
            x.grad = None
            for parameter in module.parameters():
                parameter.grad = None
            with running(s):
                out = module(x)
            out.backward(weight)

    with threads(s):
        return repeated(run, s.device, probe.repeats)


def _kept(module: nn.Module, site: Site, batch: int, probe: Probe) -> float:
    s = probe.settings
    kind = weight_type(s)
    module = module.to(s.device, kind).train().requires_grad_(True)
    x = torch.randn(batch, *_input_shape(site), device=s.device, dtype=kind, requires_grad=True)

    def run() -> Any:
        with running(s):
            return module(x)

    return float(kept_for_backward(run, [*module.parameters(), *module.buffers()]))


def costs(
    module: nn.Module, form: str, site: Site, probe: Probe, profile: Profile
) -> dict[str, float]:
    """By metric, what ``module`` costs in the place of ``site`` (and of its upsample).

    Times come from the profile where they are known. MACs are left to the caller.
    """
    calls = site.calls or 1
    params = sum(p.numel() for p in module.parameters())
    narrow = 2 if weight_type(probe.settings) in (torch.float16, torch.bfloat16) else 4
    found: dict[str, float] = {}
    for metric in probe.metrics:
        if metric in ("latency", "train-time"):
            train = metric == "train-time"
            batch = probe.train_batch if train else probe.batch
            key = _key(site, form, "step" if train else "forward", batch, probe)

            def measure(batch: int = batch, train: bool = train) -> float:
                return _seconds(copy.deepcopy(module), site, batch, probe, train=train)

            found[metric] = calls * profile.get(key, measure)
        elif metric == "memory":
            kept = _kept(copy.deepcopy(module), site, probe.train_batch, probe)
            found[metric] = calls * kept + 2 * narrow * params
        elif metric == "params":
            found[metric] = params
    return found


def _with_upsample(site: Site, module: nn.Module) -> nn.Module:
    if site.upsample is None:
        return module
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), module)


def original_costs(conv: nn.Module, site: Site, probe: Probe, profile: Profile) -> dict[str, float]:
    """What the convolution costs as it is, its norm included."""
    found = costs(_with_upsample(site, copied(conv)), "original", site, probe, profile)
    if "macs" in probe.metrics:
        found["macs"] = float(site.macs or 0)
    return found


def _dense(conv: nn.Module) -> nn.Module:
    dense = copied(conv)
    if norm_kind(dense) != "none":
        fold(dense)
    return dense


def candidates(
    conv: nn.Conv2d | nn.ConvTranspose2d,
    site: Site,
    probe: Probe,
    profile: Profile,
    *,
    sample: Sample | None,
    fixed: bool,
) -> list[Candidate]:
    """The forms of one convolution that are worth having, the dense one first.

    Ranks are tried upwards and given up at the first that is no cheaper, in any of the metrics,
    than a form that loses nothing.

    Args:
        conv: the convolution; left as it was.
        site: its record.
        probe: what to measure.
        profile: known times; new ones are added.
        sample: inputs and wanted outputs; None: the loss is the kernel's lost energy.
        fixed: only the dense form.
    """
    dense = _dense(conv)
    kept = costs(_with_upsample(site, dense), "dense", site, probe, profile)
    if "macs" in probe.metrics:
        kept["macs"] = float(site.macs or 0)
    found = [Candidate(rule=None, rank=None, loss=0.0, costs=kept)]
    if fixed:
        return found
    kernel = kernel_of(conv).float()
    bias = conv.bias.detach().float() if conv.bias is not None else None
    # What is exact comes first: the others have to beat it.
    for rule in sorted(rules(), key=lambda r: r.order != "dense"):
        if rule.refuses(site) is not None:
            continue
        for rank in range(1, rule.max_rank(site) + 1):
            made = _candidate(rule, rank, kernel, bias, site, probe, profile, sample)
            lossless = [c for c in found if c.loss <= 1e-9]
            if any(all(c.costs[m] <= made.costs[m] for m in probe.metrics) for c in lossless):
                break
            found.append(made)
    return found


@torch.no_grad()
def _built(rule: Rule, site: Site, kernel: Tensor, bias: Tensor | None, rank: int) -> Any:
    return rule.build(site, kernel, bias, rank)


def _candidate(
    rule: Rule,
    rank: int,
    kernel: Tensor,
    bias: Tensor | None,
    site: Site,
    probe: Probe,
    profile: Profile,
    sample: Sample | None,
) -> Candidate:
    built = _built(rule, site, kernel, bias, rank)
    module = built.module if rule.absorbs_upsample else _with_upsample(site, built.module)
    loss = built.residual
    if sample is not None and loss > 0:
        with torch.no_grad():
            loss = sample.error(module.eval())
    found = costs(module, f"{rule.name} rank {rank}", site, probe, profile)
    if "macs" in probe.metrics:
        found["macs"] = float(rule.macs(site, rank) or 0)
    # Rounding is no loss: an exact rule must tie with the dense form.
    return Candidate(rule=rule.name, rank=rank, loss=loss if loss > 1e-9 else 0.0, costs=found)


def samples(
    model: nn.Module, sites: Sequence[Site], batches: Sequence[tuple[Any, ...]]
) -> dict[str, Sample]:
    """Inputs (in front of the upsample) and outputs of every site, cropped, float32.

    The original is run once; the random state and its modes stay as they were.
    """
    inputs: dict[str, list[Tensor]] = {s.name: [] for s in sites}
    modules = dict(model.named_modules())

    def take(name: str, side: int) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor) and len(inputs[name]) < len(batches):
                x = args[0]
                top, left = ((n - min(n, side)) // 2 for n in x.shape[-2:])
                inputs[name].append(
                    x[..., top : top + side, left : left + side].detach().float().clone()
                )

        return hook

    handles = [
        modules[s.upsample or s.name].register_forward_pre_hook(
            take(s.name, _CROP // 2 if s.upsample else _CROP)
        )
        for s in sites
    ]
    try:
        with evaluating(model):
            torch.manual_seed(0)
            for args in batches:
                model(*args)
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
            wanted = _with_upsample(s, _dense(conv).float().eval())(x)
        found[s.name] = Sample(
            inputs=[],
            wanted=[],
            held_input=x,
            held_wanted=wanted,
            centred=s.batchnorm is not None and not s.bias,
        )
    return found


def whole(
    name: str, model: nn.Module, inputs: Any, probe: Probe, *, copy_it: bool = True
) -> LocalSubject:
    """A model under the probe's settings and layout."""
    settings = replace(probe.settings, channels_last=probe.channels_last)
    return LocalSubject(name, model, inputs, settings, copy=copy_it)


def operation(metric: str, probe: Probe) -> Operation:
    """What is run on a whole model for a timed metric."""
    if metric == "latency":
        return Operation(kind="forward", batch=probe.batch)
    return Operation(kind="step", batch=probe.train_batch)
