"""Initialise factors at random, and restore spectral norm on them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from dsconvert.fit.statistics import buffers_of
from dsconvert.model.norms import norm_kind, respectralise
from dsconvert.model.one_dimensional import ConvTypes
from dsconvert.records import Plan, Site, Sites


def randomise(model: nn.Module, plan: Plan, *, seed: int, narrowed: Collection[str] = ()) -> None:
    """Give every rewritten convolution torch's default random weights (training from scratch).

    Convolutions of other widths, ``narrowed``, get them as well: their scale follows the inputs.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for decision in plan.decisions:
            if decision.action != "rewrite" and decision.site not in narrowed:
                continue
            for module in model.get_submodule(decision.site).modules():
                if isinstance(module, ConvTypes):
                    module.reset_parameters()


def restore_spectral_norm(
    model: nn.Module, sites: Sites, plan: Plan, *, untrained: bool = False
) -> list[str]:
    """Put spectral norm back where the plan keeps it, without a change of the function.

    A rewrite and a change of width fold it. Of a convolution that was only made narrower, nothing
    behind may undo the scale: it then stays folded, unless it is ``untrained``.

    The two norms remove the pair's scale. The following modules compensate for it: the noise
    weight, the statistics of the batch normalisation and the root of its epsilon are divided by the
    same factor, so that the normalisation's output does not change. (The factor is 10 to 30 on real
    generators: without the change of the epsilon the image would lose 1 dB.)

    Returns:
        names of the convolutions that carry spectral norm again.
    """
    by_name = {s.name: s for s in sites.convolutions}
    names: list[str] = []
    with torch.no_grad():
        for decision in plan.decisions:
            site = by_name[decision.site]
            if decision.action == "remove" or decision.norm != "keep" or site.norm == "none":
                continue
            loses = not (site.absorbs_scale or untrained)
            if decision.action == "keep" and (loses or not site.norm.startswith("spectral")):
                continue
            scale = 1.0
            for module in model.get_submodule(decision.site).modules():
                if isinstance(module, ConvTypes):
                    if norm_kind(module) != "none":
                        continue
                    scale *= respectralise(module)
                    if module.bias is not None:
                        module.bias.div_(scale)
            if scale != 1.0:
                _absorb(model, site, scale)
                names.append(site.name)
    return names


def _absorb(model: nn.Module, site: Site, scale: float) -> None:
    if site.noise is not None:
        weight = model.get_submodule(site.noise).get_parameter("weight")
        weight.div_(scale)
    if site.batchnorm is not None:
        norm: Any = model.get_submodule(site.batchnorm)
        buffers = buffers_of(norm)
        if buffers is not None:
            buffers[0].div_(scale)
            buffers[1].div_(scale**2)
            norm.eps = norm.eps / scale**2
