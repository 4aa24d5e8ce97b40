"""Remove wrappers from a model, and reject arguments that are no modules."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from dsconvert.errors import UsageError

_INNER = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "OptimizedModule": "_orig_mod",
    "AveragedModel": "module",
    "EMA": "ema_model",
    "ModelEma": "ema",
    "ModelEmaV2": "module",
    "ModelEmaV3": "module",
    "_FabricModule": "_forward_module",
}
"""Wrappers of torch, ema-pytorch, timm and Lightning, and the attribute that holds the model."""


def unwrapped(model: Any) -> nn.Module:
    """Return the model itself, without wrappers that training adds.

    Raises:
        UsageError: it is no ``nn.Module`` that can be rewritten; the message says what to pass.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise UsageError(
            f"this {type(model).__name__} is a TorchScript program, whose convolutions can't be "
            "replaced. Pass the Python module that it was made from."
        )
    if isinstance(model, torch.export.ExportedProgram):
        raise UsageError(
            "this is an exported program (torch.export), whose convolutions can't be replaced. "
            "Pass the Python module that it was made from."
        )
    if isinstance(model, str | os.PathLike):
        raise UsageError(
            f"{str(model)!r} is a path, not a model. Open it first: "
            "dsconvert.open_file(path).generator, or convert the file on the command line."
        )
    if isinstance(model, dict):
        raise UsageError(
            "this is a dictionary (a state dict?), not a model. Build the module, load the state "
            "dict into it, and pass the module."
        )
    if not isinstance(model, nn.Module):
        raise UsageError(f"a {type(model).__name__} is no torch.nn.Module; pass the generator.")
    _check_parts(model)
    attribute = _INNER.get(type(model).__name__)
    inner: Any = getattr(model, attribute, None) if attribute is not None else None
    return unwrapped(inner) if isinstance(inner, nn.Module) else model


def _check_parts(model: nn.Module) -> None:
    """Raise UsageError if a part of ``model`` can be neither copied nor observed."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise UsageError(
                f"{name} of this {type(model).__name__} is a TorchScript program, which can't be "
                "looked into. Put the Python module that it was made from in its place."
            )
        tensors = (*module._parameters.values(), *module._buffers.values())
        if any(t is not None and is_lazy(t) for t in tensors):
            raise UsageError(
                f"{name or 'a part'} of this {type(model).__name__} is a {type(module).__name__}, "
                "whose weights have no shape yet. Call the model once, then load its weights."
            )
