"""Merge rewritten convolutions back to dense ones: a check, and for devices with slow depthwise."""

from __future__ import annotations

import torch
from torch import nn

from dsconvert.model.copying import owned_copy
from dsconvert.model.editing import carry_hooks, replace
from dsconvert.model.one_dimensional import as_1d, as_2d
from dsconvert.model.wrappers import unwrapped
from dsconvert.rules import rules


def merged_module(module: nn.Module) -> nn.Module | None:
    """Return the dense convolution that computes the same as ``module``, norms folded.

    None where no registered rule recognises ``module``.
    """
    flat = as_2d(module)
    found = (rule.merge(flat) for rule in rules())
    dense = next((dense for dense in found if dense is not None), None)
    return dense if dense is None or flat is module else as_1d(dense)


def merge(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` in which every rewritten convolution is dense again."""
    result = owned_copy(unwrapped(model))
    with torch.no_grad():
        for _, module in list(result.named_modules()):
            if (dense := merged_module(module)) is not None:
                carry_hooks(module, dense)
                replace(result, module, dense)
    return result
