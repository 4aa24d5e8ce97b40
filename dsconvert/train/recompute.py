"""Less memory for more time, and passes that must leave no trace.

A normalisation that runs twice over one batch (as a recomputed block does) would move its
statistics twice, and spectral norm would iterate twice; both then differ from a plain run.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.utils.checkpoint import checkpoint


def _norms(model: nn.Module) -> list[Any]:
    """Whatever holds ``n_power_iterations``: hooks, or parametrizations."""
    found: list[Any] = []
    for module in model.modules():
        found.extend(h for h in module._forward_pre_hooks.values() if isinstance(h, SpectralNorm))
        if hasattr(module, "_n_power_iterations") or hasattr(module, "n_power_iterations"):
            found.append(module)
    return found


@contextmanager
def still(*models: nn.Module) -> Generator[None, None, None]:
    """Spectral norms keep their vectors: no power iteration.

    Official training iterates once a pass over a batch. A batch that is taken in parts must not
    iterate once a part, or its result would depend on how it is cut.
    """
    before: list[tuple[Any, str, int]] = []
    for model in models:
        for norm in _norms(model):
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
def _again(module: nn.Module) -> Generator[None, None, None]:
    """A second pass over the same input: the first one's buffers stay as they are."""
    kept: list[tuple[dict[str, torch.Tensor | None], dict[str, torch.Tensor | None]]] = []
    for part in module.modules():
        kept.append((part._buffers, dict(part._buffers)))
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else buffer.clone()
    try:
        with still(module):
            yield
    finally:
        for table, before in kept:
            table.update(before)


@contextmanager
def _nothing() -> Generator[None, None, None]:
    yield


def blocks(model: nn.Module) -> list[nn.Module]:
    """The modules that are recomputed: the first level with several convolutional parts."""
    parts = [c for c in model.children() if convolutional(c)]
    if len(parts) >= 3:
        return [p for p in parts if next(p.children(), None) is not None]
    return [block for part in parts for block in blocks(part)]


def convolutional(module: nn.Module) -> bool:
    """Whether there is a 2-D convolution in it."""
    return any(isinstance(m, nn.Conv2d | nn.ConvTranspose2d) for m in module.modules())


@contextmanager
def recomputing(targets: Iterable[nn.Module]) -> Generator[None, None, None]:
    """While this is open, ``targets`` keep only their inputs for the backward pass.

    Random draws are repeated, and the second pass leaves no trace in any buffer.
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
                    context_fn=lambda: (_nothing(), _again(module)),
                )

            # On the instance, not the class, and gone before anything is saved.
            module.__dict__["forward"] = run
            undo.callback(module.__dict__.pop, "forward", None)
        yield
