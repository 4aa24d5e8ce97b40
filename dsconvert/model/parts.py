"""Run a model on a batch in parts, with the numbers that the whole batch would draw.

A generator draws its noise for the whole batch. A part draws as many numbers as the whole, and
takes its share, so that the images do not depend on the size of the parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dsconvert.adapter import image_tensor
from dsconvert.model.inputs import fresh_args, map_tensors, tensors_of
from dsconvert.util.full_memory import halving

RandomState = tuple[Tensor, Tensor | None]

_aten: Any = torch.ops.aten
_BY_SIZE = (_aten.randn.default, _aten.randn.generator, _aten.rand.default, _aten.rand.generator)
_BY_TENSOR = (_aten.randn_like.default, _aten.rand_like.default)
_IN_PLACE = (_aten.normal_.default, _aten.uniform_.default)


class _WholeDraws(TorchDispatchMode):
    """Draw for ``whole`` samples where a model draws for ``stop - start``, and return that part."""

    def __init__(self, whole: int, start: int, stop: int) -> None:
        super().__init__()
        self._whole, self._start, self._stop = whole, start, stop

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """See :class:`torch.utils._python_dispatch.TorchDispatchMode`."""
        named = dict(kwargs or {})
        if func in _BY_SIZE and self._is_part(args[0]):
            return self._share(func([self._whole, *args[0][1:]], *args[1:], **named))
        if func in (*_BY_TENSOR, *_IN_PLACE) and self._is_part(args[0].shape):
            like = args[0].new_empty((self._whole, *args[0].shape[1:]))
            drawn = self._share(func(like, *args[1:], **named))
            return args[0].copy_(drawn) if func in _IN_PLACE else drawn
        return func(*args, **named)

    def _is_part(self, size: Sequence[int]) -> bool:
        return len(size) > 1 and size[0] == self._stop - self._start

    def _share(self, drawn: Tensor) -> Tensor:
        return drawn[self._start : self._stop].clone()


@torch.no_grad()
def images_in_parts(model: nn.Module, args: Sequence[Any], *, batch: int) -> Tensor:
    """Return the images of one call; in smaller parts where the memory does not hold all of it.

    Each part begins with the present random state, and the state afterwards is that after one call.
    (In a part of one sample, a draw of one row counts as that sample's own.)

    Args:
        model: in eval mode.
        args: of the call; tensors with ``batch`` rows are cut.
        batch: number of images.
    """
    device = next((t.device for t in tensors_of(tuple(args))), torch.device("cpu"))
    before = random_state(device)

    def part(start: int, stop: int) -> Tensor:
        if (start, stop) == (0, batch):
            return image_tensor(model(*fresh_args(args)))
        set_random_state(device, before)
        cut = map_tensors(
            lambda t: t[start:stop] if t.dim() and len(t) == batch else t, tuple(args)
        )
        with _WholeDraws(batch, start, stop):
            return image_tensor(model(*fresh_args(cut)))

    return torch.cat(list(halving(part, batch)))


def random_state(device: torch.device) -> RandomState:
    """Return the states of the generators that noise may come from: the CPU's, the device's.

    The official code draws on the CPU for a model on any device.
    """
    own = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), own


def set_random_state(device: torch.device, state: RandomState) -> None:
    """Set the states of :func:`random_state`."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
