"""The loss of a network's sounds or pictures at each rank of each convolution, before a plan.

A trained vocoder or super-resolution network is a long chain of compact convolutions: at one rank
for all, some of them lose nothing and others spoil the result. So the ranks are chosen by their
losses where the network is given real inputs. For independent errors e of a layer's outputs, the
expected squared error of what the model makes is ``sum_o w_o E[e_o^2]`` to first order
(:mod:`dsconvert.width.sensitivity`). The errors are those of the kernel's leading filters with
their pointwise refitted by least squares, on inputs that they were not fitted to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dsconvert.adapter import image_tensor
from dsconvert.core.analysis import Analysis
from dsconvert.core.polish_options import as_pictures
from dsconvert.core.presets import separable
from dsconvert.core.rewrite import kernel_of
from dsconvert.data.spectrograms import RESOLUTIONS, magnitudes
from dsconvert.errors import NoGradientsError
from dsconvert.fit.activation_stream import ActivationStream, LayerCall
from dsconvert.fit.least_squares import ridge_towards
from dsconvert.fit.overflow import NotFiniteError
from dsconvert.fit.positions import position_step
from dsconvert.model.copying import isolated_copy
from dsconvert.model.graph import ConvTypes
from dsconvert.model.inputs import RandomPixels, like, values_of
from dsconvert.model.one_dimensional import as_2d, map_as_2d
from dsconvert.records import Site
from dsconvert.util.progress import Progress
from dsconvert.width.groups import folded_copy
from dsconvert.width.sensitivity import sensitivities

RankLosses = Mapping[str, Mapping[int, float]]
"""By convolution, the loss at each rank that saves MACs: a share of the variance of what the model
makes."""
_BATCH, _BATCHES = 4, 6
_DIFFERENTIATED = 2
"""Batches of two inputs for the gradients."""
_MOST = 5
"""The highest rank that is tried."""
_POSITIONS = 8
"""Positions an unknown of the least squares."""
_RIDGE = 1e-3
_COMPRESSED = 0.3
"""Power of the magnitudes. Their logarithms, by which sounds are compared, have no gradient that is
bounded where a magnitude vanishes; this power is near to them, and its gradient has a variance."""


class _Shown(nn.Module):
    """The pictures that a model makes, or the compressed magnitudes of its sounds."""

    def __init__(self, model: nn.Module, *, sounds: bool) -> None:
        super().__init__()
        self.model, self.sounds = model, sounds

    def forward(self, *args: Any) -> list[Tensor]:
        """Return pictures (N, C, H, W), or maps (N, F, frames), one a resolution."""
        made = image_tensor(self.model(*args))
        if not self.sounds:
            return [made]
        sound = made.flatten(1)
        return [magnitudes(sound, r).clamp_min(1e-5) ** _COMPRESSED for r in RESOLUTIONS]


def rank_losses(
    analysis: Analysis, *, seed: int = 0, progress: Progress | None = None
) -> RankLosses:
    """Measure the losses of a model that is given sounds or pictures.

    Empty for other models, and for one that can't be differentiated.

    Args:
        analysis: of the original.
        seed: of the inputs and every other draw.
        progress: called with ``(stage, done, total, detail)``.
    """
    sampler = analysis.sampler
    if sampler is None or isinstance(sampler, RandomPixels):
        return {}
    if not analysis.sounds and values_of(sampler) is None:
        return {}
    sites = {s.name: s for s in analysis.sites.convolutions if s.calls == 1 and _ranks(s)}
    twin = folded_copy(analysis.model).eval().float().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    batches = [like(sampler(_BATCH, generator), twin) for _ in range(_BATCHES)]
    pairs = [like(sampler(2, generator), twin) for _ in range(_DIFFERENTIATED)]
    own = isolated_copy(twin)
    shown = _Shown(as_pictures(analysis, own), sounds=analysis.sounds)
    prefix = next(f"{n}." for n, m in shown.named_modules() if m is own)
    try:
        weights, spread = sensitivities(shown, [prefix + n for n in sites], pairs, seed=seed)
    except NoGradientsError:
        return {}
    losses: dict[str, dict[int, float]] = {}

    def visit(call: LayerCall) -> None:
        weight = weights.get(prefix + call.name)
        if weight is not None and call.call == 0:
            losses[call.name] = {
                rank: float((weight * error).sum()) / max(spread, 1e-30)
                for rank, error in _errors(call, sites[call.name]).items()
            }

    with torch.no_grad(), torch.random.fork_rng():
        ActivationStream(
            analysis.graph, twin, twin, batches, visit=visit, observe=frozenset(sites), seed=seed,
            progress=(lambda i, n, d: progress("ranks", i, n, d)) if progress else None,
        ).run()  # fmt: skip
    return losses


def _ranks(site: Site) -> list[int]:
    """Return the ranks below the exact one that save MACs."""
    rule = separable(site)
    if site.macs is None or rule.why_not(site) is not None:
        return []
    most = min(_MOST, rule.max_rank(site) - 1)
    return [r for r in range(1, most + 1) if (rule.macs(site, r) or 0) < site.macs]


def _errors(call: LayerCall, site: Site) -> dict[int, Tensor]:
    """Return the mean squared error (O,) at each rank, on the first batch."""
    conv = call.student
    if not isinstance(conv, ConvTypes):
        return {}
    rule, ranks = separable(site), _ranks(site)
    inputs = [map_as_2d(args[0]) for args in call.student_args]
    wanted = [map_as_2d(y) for y in call.wanted]
    kernel, bias = kernel_of(conv), None if conv.bias is None else conv.bias.detach()
    made = as_2d(rule.build(site, kernel, bias, max(ranks)).module)
    if rule.name != "dw-pw":
        # There are few such layers: the kernel's SVD, which is a bound, is enough.
        x = inputs[0]
        if rule.absorbs_upsample:
            x = x[..., :: 2 if site.dims == 2 else 1, ::2]  # in front of the upsample
        return {
            r: (rule.build(site, kernel, bias, r).module(x) - wanted[0])
            .double().square().mean((0, 2, 3)).cpu()
            for r in ranks
        }  # fmt: skip
    spatial: Any = made.get_submodule("depthwise")
    size = max(ranks)
    unknowns = len(inputs[0][0]) * size
    x, y = _rows(spatial, inputs[1:], wanted[1:], most=_POSITIONS * unknowns)
    held_x, held_y = _rows(spatial, inputs[:1], wanted[:1], most=_POSITIONS * unknowns)
    mean_x, mean_y = x.mean(0), y.mean(0)
    x, y, held_x, held_y = x - mean_x, y - mean_y, held_x - mean_x, held_y - mean_y
    xx, xy = (x.t() @ x / len(x)).double(), (x.t() @ y / len(x)).double()
    start = made.get_submodule("pointwise").get_parameter("weight").flatten(1).t().double()
    found: dict[int, Tensor] = {}
    for rank in ranks:
        # The filters of an input channel are sorted: a lower rank is the first of them.
        used = (torch.arange(unknowns, device="cpu") % size < rank).nonzero().flatten()
        try:
            mix = ridge_towards(start[used], xx[used][:, used], xy[used], _RIDGE)
        except NotFiniteError:
            continue
        found[rank] = (held_x[:, used] @ mix.to(x) - held_y).double().square().mean(0).cpu()
    return found


def _rows(
    spatial: nn.Module, inputs: list[Tensor], wanted: list[Tensor], *, most: int
) -> tuple[Tensor, Tensor]:
    """Return about ``most`` positions of the filtered inputs (n, C R) and outputs (n, O)."""
    x = torch.cat([spatial(v).movedim(1, -1).flatten(0, -2) for v in inputs])
    y = torch.cat([v.movedim(1, -1).flatten(0, -2) for v in wanted])
    step = position_step(len(x), most, len(x) // sum(len(v) for v in inputs))
    return x[::step], y[::step]
