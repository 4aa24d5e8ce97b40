"""All spectral norms of a network together: one power iteration before a pass, a few launches.

Each spectrally normalised layer iterates for itself when it is called: 13 operators forward and
about ten backward, most of them on vectors of some hundred numbers. On a GPU the launches of a step
of a converted generator were to 40 % these. Here the products with the kernels remain, and
everything between them is done for all layers at once. Files and state dicts stay what they are
(``weight_orig``, ``weight_u``, ``weight_v``), and so do the numbers, but for rounding.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm

_MANY: Any = cast("Any", torch)
_LEAST = 1e-12
"""Of the length by which a vector is divided: torch's default, and that of the official files."""
_KNOWN: WeakKeyDictionary[nn.Module, _Norms] = WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """One spectrally normalised layer, and the place of its hook."""

    module: Any
    hook: Any
    key: int

    @property
    def raw(self) -> Tensor:
        """The kernel that is trained."""
        return getattr(self.module, f"{self.hook.name}_orig")

    @property
    def left(self) -> Tensor:
        """The left singular vector, (H,)."""
        return getattr(self.module, f"{self.hook.name}_u")

    @property
    def right(self) -> Tensor:
        """The right singular vector, (W,)."""
        return getattr(self.module, f"{self.hook.name}_v")


def _matrix(kernel: Tensor, dim: int) -> Tensor:
    """Return a kernel as (H, W), H being its dimension ``dim``."""
    return (kernel if dim == 0 else kernel.transpose(0, dim)).flatten(1)


def _segments(flat: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    return flat.split(list(sizes))


class _Divided(torch.autograd.Function):
    """Kernels divided by their norms, ``W / (u^T W v)`` with constant u and v.

    The gradient is ``(g - (<g, W> / sigma) u v^T) / sigma``.
    """

    @staticmethod
    def forward(
        ctx: Any, norms: _Norms, u: Tensor, v: Tensor, sigma: Tensor, *kernels: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.norms = norms
        # A kernel that the call did not use has no gradient, instead of one of zeros.
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(u, v, sigma, *kernels)
        return tuple(k / s for k, s in zip(kernels, sigma.unbind(), strict=True))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        norms: _Norms = ctx.norms
        u, v, sigma, *kernels = ctx.saved_tensors
        wanted = [i for i, g in enumerate(grads) if g is not None]
        along = torch.zeros_like(sigma)
        mine = {i: _matrix(cast("Tensor", grads[i]), norms.dims[i]).contiguous() for i in wanted}
        for i in wanted:
            matrix = _matrix(kernels[i], norms.dims[i])
            torch.dot(mine[i].flatten(), matrix.flatten(), out=along[i])
        scaled = _segments(u * (along / sigma).index_select(0, norms.rows), norms.heights)
        others = _segments(v, norms.widths)
        found: list[Tensor | None] = [None] * len(grads)
        for i in wanted:
            grad = torch.addr(mine[i], scaled[i], others[i], alpha=-1).div_(sigma[i])
            shape, dim = kernels[i].shape, norms.dims[i]
            if dim:
                turned = [shape[dim], *shape[1:]]
                turned[dim] = shape[0]
                found[i] = grad.view(turned).transpose(0, dim)
            else:
                found[i] = grad.view(shape)
        return (None, None, None, None, *found)


class _Norms:
    """The spectral norms of one network."""

    def __init__(self, model: nn.Module) -> None:
        self.layers = [
            _Layer(module=module, hook=hook, key=key)
            for module in model.modules()
            for key, hook in module._forward_pre_hooks.items()
            if isinstance(hook, SpectralNorm)
        ]
        self.dims = [layer.hook.dim for layer in self.layers]
        self.heights = [layer.left.numel() for layer in self.layers]
        self.widths = [layer.right.numel() for layer in self.layers]
        self.rows, self.columns = self._places(self.heights), self._places(self.widths)

    def _places(self, sizes: Sequence[int]) -> Tensor:
        """Return the layer of each element of vectors that lie one behind the other."""
        device = self.layers[0].raw.device if self.layers else torch.device("cpu")
        order = torch.arange(len(sizes))
        return order.repeat_interleave(torch.tensor(sizes, dtype=torch.int64)).to(device)

    @property
    def usable(self) -> bool:
        """Whether every layer would iterate once now, in float32 and on one device."""
        return bool(self.layers) and all(
            layer.module.training
            and layer.module._forward_pre_hooks.get(layer.key) is layer.hook
            and layer.hook.n_power_iterations == 1
            and layer.hook.eps == _LEAST
            and layer.raw.dtype == torch.float32
            and layer.raw.device == self.rows.device
            for layer in self.layers
        )

    def _unit(
        self, products: Tensor, sizes: Sequence[int], places: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return vectors of length 1, one behind the other, and their lengths before."""
        lengths = torch.stack(_MANY._foreach_norm(_segments(products, sizes)))
        return products / lengths.clamp_min(_LEAST).index_select(0, places), lengths

    @torch.no_grad()
    def iterated(self) -> tuple[Tensor, Tensor, Tensor]:
        """Iterate once; return the new vectors u and v of all layers, and the norms."""
        matrices = [_matrix(layer.raw, layer.hook.dim) for layer in self.layers]
        like = self.layers[0].left
        v = like.new_empty(sum(self.widths))
        for layer, matrix, out in zip(
            self.layers, matrices, _segments(v, self.widths), strict=True
        ):
            torch.mv(matrix.t(), layer.left, out=out)
        v, _ = self._unit(v, self.widths, self.columns)
        right = _segments(v, self.widths)
        u = like.new_empty(sum(self.heights))
        for matrix, vector, out in zip(matrices, right, _segments(u, self.heights), strict=True):
            torch.mv(matrix, vector, out=out)
        # u is W v divided by its length: u^T W v is that length.
        u, sigma = self._unit(u, self.heights, self.rows)
        return u, v, sigma

    @torch.no_grad()
    def store(self, u: Tensor, v: Tensor, which: Sequence[int]) -> None:
        """Give the layers ``which`` their new vectors."""
        if not which:
            return
        lefts, rights = _segments(u, self.heights), _segments(v, self.widths)
        _MANY._foreach_copy_([self.layers[i].left for i in which], [lefts[i] for i in which])
        _MANY._foreach_copy_([self.layers[i].right for i in which], [rights[i] for i in which])


@contextmanager
def normalised_together(model: Any) -> Generator[None, None, None]:
    """Normalise all kernels of ``model`` now, for one call within this context.

    Where a layer would not iterate once (it is in eval mode, say), nothing is done, and each layer
    normalises its own kernel as usual. A layer that one call uses several times iterates once; one
    that it does not use keeps its vectors and gets no gradient, as with its hook.
    """
    if not isinstance(model, nn.Module):
        yield
        return
    norms = _KNOWN.get(model)
    if norms is None:
        norms = _KNOWN[model] = _Norms(model)
    if not norms.usable:
        yield
        return
    kind = norms.rows.device.type
    mixed = torch.amp.is_autocast_available(kind)
    with torch.autocast(kind, enabled=False) if mixed else nullcontext():
        u, v, sigma = norms.iterated()
        made: Any = _Divided.apply(norms, u, v, sigma, *(layer.raw for layer in norms.layers))
    used: set[int] = set()

    def noting(index: int) -> Any:
        # Stands in for the hook, which has nothing else left to do.
        return lambda _module, _inputs: used.add(index)

    for i, (layer, kernel) in enumerate(zip(norms.layers, made, strict=True)):
        setattr(layer.module, layer.hook.name, kernel)
        layer.module._forward_pre_hooks[layer.key] = noting(i)
    try:
        yield
    finally:
        for layer in norms.layers:
            layer.module._forward_pre_hooks[layer.key] = layer.hook
        norms.store(u, v, sorted(used))
