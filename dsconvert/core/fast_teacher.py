"""A faster form of an original with the same images, for the many runs of a training."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from dsconvert.core.analysis import Analysis, analyse
from dsconvert.core.conversion import apply_to
from dsconvert.core.cost import count
from dsconvert.core.planner import make_plan
from dsconvert.errors import DsconvertError
from dsconvert.model.copying import isolated_copy
from dsconvert.model.graph import ConvTypes
from dsconvert.model.inputs import Inputs
from dsconvert.model.norms import fold, norm_kind


def fast_teacher(model: nn.Module, *, inputs: Inputs | None = None) -> nn.Module:
    """Return a faster copy of ``model`` with the same images: norms folded, upsamples merged.

    If the model can't be traced, only its norms are folded.
    """
    try:
        analysis = analyse(model, inputs=inputs)
    except DsconvertError:
        return _folded(isolated_copy(model))
    return fast_form(analysis)


def fast_form(analysis: Analysis) -> nn.Module:
    """Return the same of an analysed model, which does not change."""
    try:
        own = replace(analysis, model=isolated_copy(analysis.model), owned=True)
        decided = make_plan(own.sites, preset="exact")
        uncounted = count(own.model)  # MACs, which take a run each, are of no use here
        costs = (uncounted, uncounted)
        made = apply_to(own, decided, init="svd", calibrate=0, costs=costs).model
    except DsconvertError:
        made = analysis.result(isolated_copy(analysis.model))
    return _folded(made)


def _folded(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, ConvTypes) and norm_kind(module) != "none":
            fold(module)
    return model
