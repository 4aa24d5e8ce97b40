"""The loss of a whole generator where one layer alone is rewritten, or one group of maps narrower.

Each trial replaces one layer by its fitted form (or lets its consumers read a least-squares
prediction of the removed channels), runs the rest of the original, and compares the images and
their pooled features with the original's. Nothing is linearised: a trial is what the layer does to
the image.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from dsconvert.core.analysis import Analysis
from dsconvert.core.rewrite import kernel_of
from dsconvert.errors import UsageError
from dsconvert.fit import Sample
from dsconvert.model.graph import ConvTypes
from dsconvert.model.inputs import held_out_inputs, like
from dsconvert.model.upsampling import upsample_of
from dsconvert.records import Site
from dsconvert.rules import Rule, rules
from dsconvert.search.candidates import samples
from dsconvert.search.channel_trials import SHARES, can_narrow, moments, width_trials
from dsconvert.search.trial_rig import Features, LayerTrials, Rig, Sensitivity, Trial
from dsconvert.util.progress import Progress
from dsconvert.width.groups import folded_copy

RANKS = (1, 2, 4)
"""Ranks that are tried, where they save anything; a fit of each layer is most of the work."""
LATENTS = 8
"""Latents of the trials; fewer for a model with many multiply-accumulates."""
_FITTED = 32
"""Latents that layers are fitted to."""
_MACS = 6e12
"""Multiply-accumulates that the trials may take, about two minutes on two CPU cores."""
_EXACT = 1e-9


def layer_trials(
    analysis: Analysis,
    *,
    picture: Callable[[nn.Module], nn.Module],
    features: Features | None,
    seed: int = 0,
    latents: int | None = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """Try every layer and every group of channels of a model by itself.

    Groups are left out if the model has no gradients, by which channels are chosen.

    Args:
        analysis: of the original.
        picture: returns a model as one whose output is an image in [-1, 1].
        features: images to pooled features (N, F); None: the image alone counts.
        seed: of the latents and of the model's own draws.
        latents: of the trials; None: as many as a budget allows.
        progress: called with ``(stage, done, total, detail)``.
    """
    sampler = analysis.sampler
    if sampler is None:
        return Sensitivity(layers=(), latents=0, power=1.0)
    # In float32, as layers are fitted: many CPU operators lack half precision.
    model = folded_copy(analysis.model).eval().float().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    fitted = [like(sampler(4, generator), model) for _ in range(_FITTED // 4)]
    free = [
        s
        for s in analysis.sites.convolutions
        if s.calls == 1 and s.locked is None and _rule(s) is not None
    ]
    groups = [g for g in analysis.groups.free() if g.channels >= 8]
    if groups and not can_narrow(analysis, seed, progress):
        groups = []
    total = sum(len(_ranks(s)) for s in free) + len(SHARES) * len(groups)
    macs = analysis.cost.macs or 0
    count = latents or max(2, min(LATENTS, int(_MACS / max(1, macs * total))))
    judged = like(held_out_inputs(sampler)(count, generator), model)
    found: list[LayerTrials] = []
    done = 0

    def tell(name: str) -> None:
        if progress is not None:
            progress("layer by layer", done, total, name)

    with torch.no_grad(), torch.random.fork_rng():
        rig = Rig(model, picture(model), judged, features, seed)
        known = samples(model, free, fitted)
        for site in free:
            rule = _rule(site)
            if rule is None or site.name not in known:
                continue
            tell(site.name)
            found.append(_rank_trials(rig, site, rule, known[site.name]))
            done += len(_ranks(site))
        second = moments(model, sorted({n for g in groups for n in g.consumers}), fitted)
        for group in groups:
            tell(group.name)
            made = width_trials(rig, analysis, group.name, second, seed, progress)
            if made is not None:
                found.append(made)
            done += len(SHARES)
        tell("")
    return Sensitivity(layers=tuple(found), latents=count, power=rig.power)


def _rule(site: Site) -> Rule | None:
    """Return the rule with the fewest MACs at rank 1, if it saves any."""
    found = [r for r in rules() if not r.exact and r.why_not(site) is None]
    if site.macs is None or site.groups != 1 or not found:
        return None
    best = min(found, key=lambda r: (r.macs(site, 1) or 0, r.params(site, 1)))
    return best if (best.macs(site, 1) or 0) < site.macs else None


def _ranks(site: Site) -> list[int]:
    rule = _rule(site)
    if rule is None:
        return []
    macs = site.macs or 0
    return [r for r in RANKS if r < rule.max_rank(site) and (rule.macs(site, r) or 0) < macs]


def _rank_trials(rig: Rig, site: Site, rule: Rule, known: Sample) -> LayerTrials:
    conv = rig.model.get_submodule(site.name)
    if not isinstance(conv, ConvTypes):
        raise UsageError(f"{site.name} is a {type(conv).__name__}, not a convolution.")
    bias = None if conv.bias is None else conv.bias.detach().float()
    half = len(known.held_input) // 4
    sample = Sample(
        inputs=[known.held_input[half:]],
        wanted=[known.held_wanted[half:]],
        held_input=known.held_input[:half],
        held_wanted=known.held_wanted[:half],
        centred=known.centred,
    )
    trials: list[Trial] = []
    for rank in _ranks(site):
        module = rule.build(site, kernel_of(conv).float(), bias, rank).module.eval()
        whole = module
        if site.upsample is not None and not rule.absorbs_upsample:
            whole = nn.Sequential(upsample_of(site), module)
        error = sample.error(whole)
        if rule.fit is not None and error > _EXACT and whole is module:
            start = {k: v.clone() for k, v in module.state_dict().items()}
            rule.fit.run(module, sample)
            fitted = sample.error(module)
            if not fitted < error:  # also where it is not finite
                module.load_state_dict(start)
            else:
                error = fitted
        # Statistics are re-estimated after a fit, which undoes a constant shift of a channel.
        shift = None
        if known.centred:
            shift = (sample.wanted[0] - whole(sample.inputs[0])).mean((0, 2, 3))
        with rig.instead(site, module, rule, shift):
            image, features = rig.loss()
        trials.append(
            Trial(
                step=rank, macs=float(rule.macs(site, rank) or 0), error=error, image=image,
                features=features,
            )
        )  # fmt: skip
    return LayerTrials(
        name=site.name, kind="rank", rule=rule.name, whole=rule.max_rank(site),
        macs=float(site.macs or 0), trials=tuple(trials),
    )  # fmt: skip
