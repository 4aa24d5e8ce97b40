"""Merge rewritten convolutions back to dense ones: a check, and for devices with slow depthwise."""

from __future__ import annotations

import torch
from torch import nn

from dsconvert.model.copying import owned_copy
from dsconvert.model.editing import carry_hooks, replace
from dsconvert.model.norms import norm_kind, other_hooks
from dsconvert.model.observe import undisturbed
from dsconvert.model.one_dimensional import Conv1dTypes, ConvTypes, as_1d, as_2d
from dsconvert.model.sites import own_forward
from dsconvert.model.wrappers import unwrapped
from dsconvert.rules import rules


def _by_weights_alone(module: nn.Module) -> bool:
    """Return whether no hook inside ``module`` and no ``forward`` of its own changes its result."""
    if "forward" in vars(module) or any(other_hooks(m) for m in module.children()):
        return False
    convs = [m for m in module.children() if isinstance(m, ConvTypes)]
    # The two-dimensional form takes the stored weight, which a norm may replace before each call.
    normed = any(isinstance(m, Conv1dTypes) and norm_kind(m) != "none" for m in convs)
    return not normed and all(own_forward(m) is None for m in convs)


def merged_module(module: nn.Module) -> nn.Module | None:
    """Return the dense convolution that computes the same as ``module``, norms folded.

    None where no registered rule recognises ``module``, or code of its own computes in it.
    """
    if not _by_weights_alone(module):
        return None
    flat = as_2d(module)
    found = (rule.merge(flat) for rule in rules())
    dense = next((dense for dense in found if dense is not None), None)
    return dense if dense is None or flat is module else as_1d(dense)


def merge(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` in which every rewritten convolution is dense again.

    Those of the rule ``low-pw-dw`` stay as they are: after a fit no convolution of the doubled
    map equals them. A converted bare convolution gives a bare convolution.
    """
    with undisturbed(), torch.no_grad():
        result = owned_copy(unwrapped(model))
        for _, module in list(result.named_modules()):
            if (dense := merged_module(module)) is not None:
                carry_hooks(module, dense)
                if module is result:
                    return dense
                replace(result, module, dense)
    return result
