"""One-dimensional convolutions as two-dimensional ones of height 1.

A ``Conv1d`` on (N, C, L) is a ``Conv2d`` of kernel (1, k) on (N, C, 1, L), and torch computes it
so. Rules, solvers and timers know two dimensions alone: what they get of a one-dimensional
convolution is its two-dimensional form, and what they make of it is brought back.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils import skip_init

Conv1dTypes = (nn.Conv1d, nn.ConvTranspose1d)
Conv2dTypes = (nn.Conv2d, nn.ConvTranspose2d)
ConvTypes = (*Conv2dTypes, *Conv1dTypes)
TransposedTypes = (nn.ConvTranspose2d, nn.ConvTranspose1d)
Convolution = nn.Conv2d | nn.ConvTranspose2d | nn.Conv1d | nn.ConvTranspose1d
_TWIN: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: nn.Conv2d,
    nn.ConvTranspose1d: nn.ConvTranspose2d,
}
_BACK = {two: one for one, two in _TWIN.items()}
_OPTIONS = ("kernel_size", "stride", "dilation")


def is_1d(module: nn.Module) -> bool:
    """Return whether ``module`` is or holds a one-dimensional convolution."""
    return any(isinstance(m, Conv1dTypes) for m in module.modules())


def pair(value: Any, *, fill: int) -> tuple[int, int]:
    """Return a geometry in two dimensions: ``(k,)`` gives ``(fill, k)``; pairs stay."""
    numbers = (value,) if isinstance(value, int) else tuple(value)
    return (fill, int(numbers[0])) if len(numbers) == 1 else (int(numbers[0]), int(numbers[1]))


def map_as_2d(value: Tensor) -> Tensor:
    """Return a map (N, C, L) as (N, C, 1, L), a view; other tensors stay."""
    return value.unsqueeze(2) if value.ndim == 3 else value


def shape_as_2d(shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Return the shape of a map as (N, C, H, W)."""
    return (*shape[:2], 1, shape[2]) if shape is not None and len(shape) == 3 else shape


def outputs_first(weight: Tensor, *, transposed: bool) -> Tensor:
    """Return an ungrouped kernel as ``(O, I, kh, kw)``."""
    return map_as_2d(weight).transpose(0, 1) if transposed else map_as_2d(weight)


def as_2d(module: nn.Module) -> nn.Module:
    """Return ``module`` with two-dimensional convolutions, on the same memory.

    Its parameters are views: what is written into them in place is written into the original's.
    ``module`` is a plain convolution, or an ``nn.Sequential`` of such ones.
    """
    if not is_1d(module):
        return module
    if type(module) is nn.Sequential:
        made = nn.Sequential()
        for name, child in module.named_children():
            made.add_module(name, as_2d(child))
        return made.train(module.training)
    return _changed(module, to_2d=True) if isinstance(module, Conv1dTypes) else module


def write_back(flat: nn.Module, module: nn.Module) -> None:
    """Copy the parameters of ``flat``, a result of :func:`as_2d`, to its ``module``.

    A change of their type in between ends their sharing of memory.
    """
    if flat is module:
        return
    made = dict(flat.named_parameters())
    for name, own in module.named_parameters():
        own.data.copy_(made[name].detach().reshape(own.shape))


def as_1d(module: nn.Module) -> nn.Module:
    """Return ``module``, made for maps of height 1, with one-dimensional convolutions.

    The parameters are on the same memory.

    Raises:
        ValueError: a kernel is higher than 1.
    """
    if type(module) is nn.Sequential:
        made = nn.Sequential()
        for name, child in module.named_children():
            made.add_module(name, as_1d(child))
        return made.train(module.training)
    return _changed(module, to_2d=False) if isinstance(module, Conv2dTypes) else module


def _changed(module: nn.Module, *, to_2d: bool) -> nn.Module:
    conv: Any = module
    kind = next(k for k in (_TWIN if to_2d else _BACK) if isinstance(module, k))
    if not to_2d and conv.kernel_size[0] != 1:
        raise ValueError(f"a kernel of {conv.kernel_size} has no one-dimensional form")

    def turned(value: Any, fill: int) -> Any:
        if isinstance(value, str):
            return value
        return pair(value, fill=fill) if to_2d else (value[1],)

    options: dict[str, Any] = {name: turned(getattr(conv, name), 1) for name in _OPTIONS}
    options["padding"] = turned(conv.padding, 0)
    if isinstance(module, TransposedTypes):
        options["output_padding"] = turned(conv.output_padding, 0)
    made: Any = skip_init(
        (_TWIN if to_2d else _BACK)[kind],
        conv.in_channels,
        conv.out_channels,
        groups=conv.groups,
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode,
        device="meta",
        **options,
    )
    weight = conv.weight.detach()
    weight = weight.unsqueeze(2) if to_2d else weight.squeeze(2)
    made.weight = nn.Parameter(weight, requires_grad=conv.weight.requires_grad)
    if conv.bias is not None:
        made.bias = nn.Parameter(conv.bias.detach(), requires_grad=conv.bias.requires_grad)
    return made.train(module.training)
