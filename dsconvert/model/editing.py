"""Change a copy of a model: its modules, and which of its parameters learn."""

from __future__ import annotations

from typing import Any

from torch import nn

from dsconvert.model.copying import HOOKS, owned_copy


def copied(model: nn.Module, replaced: frozenset[str] = frozenset()) -> nn.Module:
    """Return a copy that shares only the parameters of the modules that will be replaced."""
    memo: dict[int, Any] = {}
    for name, module in model.named_modules():
        if name in replaced:
            for tensor in (*module.parameters(), *module.buffers()):
                memo[id(tensor)] = tensor
    return owned_copy(model, memo)


def trainable(model: nn.Module, wanted: bool) -> None:
    """Let the parameters of ``model`` have gradients, or none; integers have none."""
    for parameter in model.parameters():
        parameter.requires_grad_(wanted and parameter.is_floating_point())


def carry_hooks(old: nn.Module, new: nn.Module) -> None:
    """Copy the hooks of ``old`` to ``new``, its replacement, without those of a norm."""
    for table, options in HOOKS.items():
        for key, hook in getattr(old, table).items():
            if type(hook).__name__ in ("SpectralNorm", "WeightNorm"):
                continue
            getattr(new, table)[key] = hook
            for option in options:
                if key in getattr(old, option):
                    getattr(new, option)[key] = getattr(old, option)[key]
    # torch calls backward hooks only where it is set.
    new._is_full_backward_hook = old._is_full_backward_hook


def replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replace ``old`` by ``new`` under all of its names in ``model``."""
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module is old:
            model.set_submodule(name, new)
