"""Merge rewritten convolutions back to dense ones: a check, and for devices with slow depthwise."""

from __future__ import annotations

import torch
from torch import nn

from dsconvert.model.copying import owned_copy
from dsconvert.model.editing import carry_hooks, replace
from dsconvert.model.wrappers import unwrapped
from dsconvert.rules import rules


def merged_module(module: nn.Module) -> nn.Module | None:
    """Return the dense convolution that computes the same as ``module``, norms folded.

    None where no registered rule recognises ``module``.
    """
    found = (rule.merge(module) for rule in rules())
    return next((dense for dense in found if dense is not None), None)


def merge(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` in which every rewritten convolution is dense again."""
    result = owned_copy(unwrapped(model))
    with torch.no_grad():
        for _, module in list(result.named_modules()):
            if (dense := merged_module(module)) is not None:
                carry_hooks(module, dense)
                replace(result, module, dense)
    return result
