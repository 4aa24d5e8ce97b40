"""Initialise factors at random, and restore spectral norm on them."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn

from dsconvert.fit.statistics import buffers_of
from dsconvert.model.norms import norm_kind, respectralise
from dsconvert.model.one_dimensional import Convolution, ConvTypes
from dsconvert.records import Plan, Site, Sites


def randomise(model: nn.Module, plan: Plan, *, seed: int, narrowed: Collection[str] = ()) -> None:
    """Give every rewritten convolution torch's default random weights (training from scratch).

    Convolutions of other widths, ``narrowed``, get them as well: their scale follows the inputs.
    :func:`restore_spectral_norm` changes the scale of factors that get spectral norm.
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
    generators: without the change of the epsilon the image would lose 1 dB.) Of ``untrained``
    weights there is no output to keep, and the other modules stay as new.

    ``untrained`` factors get the root mean square of torch's new dense kernel. A normalised weight
    does not change with its scale, but a step of Adam is of the same size whatever the scale: the
    smaller the weight, the faster it turns. By torch's own scale a depthwise kernel would turn
    10 to 20 times, and a pointwise one 3 times, more slowly than the dense kernel, for which the
    recipe's learning rate was chosen.

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
            layers = [
                m
                for m in model.get_submodule(decision.site).modules()
                if isinstance(m, ConvTypes) and norm_kind(m) == "none"
            ]
            if untrained and decision.action == "rewrite":
                _scale_as_dense(layers, site)
            for layer in layers:
                scale *= respectralise(layer)
                if layer.bias is not None and not untrained:
                    layer.bias.div_(scale)
            if scale != 1.0:
                if not untrained:
                    _absorb(model, site, scale)
                names.append(site.name)
    return names


def _scale_as_dense(factors: Sequence[Convolution], site: Site) -> None:
    """Give the weights the root mean square of torch's new dense kernel of the same width."""
    if not factors:
        return
    transposed = site.kind == "transposed"
    fan_in = factors[-1].out_channels if transposed else factors[0].in_channels
    fan_in = fan_in // site.groups * math.prod(site.kernel_size)
    for factor in factors:
        factor.weight.mul_(1 / math.sqrt(3 * fan_in) / factor.weight.square().mean().sqrt())


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
