"""Put one module in the place of another, on a copy of the model."""

from __future__ import annotations

from typing import Any

from torch import nn

from dsconvert.model.copying import owned_copy


def copied(model: nn.Module, replaced: frozenset[str] = frozenset()) -> nn.Module:
    """A copy that shares the parameters of the modules about to be replaced, and nothing else."""
    memo: dict[int, Any] = {}
    for name, module in model.named_modules():
        if name in replaced:
            for tensor in (*module.parameters(), *module.buffers()):
                memo[id(tensor)] = tensor
    return owned_copy(model, memo)


def carry_hooks(old: nn.Module, new: nn.Module) -> None:
    """Give ``new``, which takes the place of ``old``, its hooks; a norm's own stays behind."""
    for table in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        for key, hook in getattr(old, table).items():
            if type(hook).__name__ not in ("SpectralNorm", "WeightNorm"):
                getattr(new, table)[key] = hook


def replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` wherever ``old`` stands in ``model`` (a shared module has several names)."""
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module is old:
            model.set_submodule(name, new)
