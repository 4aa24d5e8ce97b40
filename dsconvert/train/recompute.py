"""Recompute blocks in the backward pass, for less memory, without side effects.

A normalisation that runs twice over one batch (as in a recomputed block) would update its
statistics twice, and spectral norm would iterate twice; both would then differ from a plain run.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.utils.checkpoint import checkpoint

from dsconvert.model.graph import convolutional


def _spectral_norms(model: nn.Module) -> list[Any]:
    """Return the objects with ``n_power_iterations``: hooks, or parametrizations."""
    found: list[Any] = []
    for module in model.modules():
        found.extend(h for h in module._forward_pre_hooks.values() if isinstance(h, SpectralNorm))
        if hasattr(module, "_n_power_iterations") or hasattr(module, "n_power_iterations"):
            found.append(module)
    return found


@contextmanager
def without_power_iteration(*models: nn.Module) -> Generator[None, None, None]:
    """Keep the vectors of all spectral norms: no power iteration runs in this context.

    Official training iterates once for each pass over a batch. If a batch that is taken in parts
    iterated once for each part, its result would depend on the size of the parts.
    """
    before: list[tuple[Any, str, int]] = []
    for model in models:
        for norm in _spectral_norms(model):
            name = "n_power_iterations"
            name = name if hasattr(norm, name) else f"_{name}"
            before.append((norm, name, getattr(norm, name)))
            setattr(norm, name, 0)
    try:
        yield
    finally:
        for norm, name, value in before:
            setattr(norm, name, value)


@contextmanager
def _second_pass(module: nn.Module) -> Generator[None, None, None]:
    """Run a second pass over the same input without a change of the buffers."""
    kept: list[tuple[dict[str, torch.Tensor | None], dict[str, torch.Tensor | None]]] = []
    for part in module.modules():
        kept.append((part._buffers, dict(part._buffers)))
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else buffer.clone()
    try:
        with without_power_iteration(module):
            yield
    finally:
        for table, before in kept:
            table.update(before)


@contextmanager
def _first_pass() -> Generator[None, None, None]:
    yield


def blocks(model: nn.Module) -> list[nn.Module]:
    """Return the modules to recompute: the first level with several convolutional parts."""
    parts = [c for c in model.children() if convolutional(c)]
    if len(parts) >= 3:
        return [p for p in parts if next(p.children(), None) is not None]
    return [block for part in parts for block in blocks(part)]


@contextmanager
def recomputing(targets: Iterable[nn.Module]) -> Generator[None, None, None]:
    """Make ``targets`` keep only their inputs for the backward pass, within this context.

    The second pass repeats the random draws and changes no buffer.
    """
    with ExitStack() as undo:
        for module in targets:
            inner: Any = module.forward

            def run(*args: Any, module: nn.Module = module, inner: Any = inner) -> Any:
                if not torch.is_grad_enabled():
                    return inner(*args)
                return checkpoint(
                    inner,
                    *args,
                    use_reentrant=False,
                    context_fn=lambda: (_first_pass(), _second_pass(module)),
                )

            # Set on the instance, not the class, and removed before anything is saved.
            module.__dict__["forward"] = run
            undo.callback(module.__dict__.pop, "forward", None)
        yield
