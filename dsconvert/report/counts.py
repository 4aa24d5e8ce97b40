"""Parameters and MACs, counted by fvcore.

fvcore counts one multiply-accumulate as one; so do we, and call it a MAC. It counts convolutions
(transposed and grouped ones too), matrix products, normalisations and resampling; element-wise
work (activations, noise) is not counted but named in ``Cost.unsupported``.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

from torch import nn

from dsconvert.records import Cost, LayerCost
from dsconvert.trace import evaluating

with warnings.catch_warnings():
    # fvcore scripts a function at import, which today's torch calls deprecated.
    warnings.simplefilter("ignore")
    from fvcore.nn import FlopCountAnalysis
    from fvcore.nn.jit_handles import get_shape

NO_INPUTS = "no MACs: nothing says what the inputs look like (pass example_inputs)"


def _convolution_mode(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """MACs of a convolution with ``padding="same"``, an operator that fvcore does not know."""
    weight, result = get_shape(inputs[1]), get_shape(outputs[0])
    if weight is None or result is None:
        return Counter()
    return Counter({"conv": prod(weight) * result[0] * prod(result[2:])})


@contextmanager
def _quiet() -> Generator[None, None, None]:
    logger = logging.getLogger("fvcore.nn.jit_analysis")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _params(module: nn.Module) -> int:
    # A folded and a reparametrised weight both count once: sigma's vectors are buffers.
    return sum(p.numel() for p in module.parameters())


def count(model: nn.Module, inputs: Sequence[Any] | None = None) -> Cost:
    """Count ``model`` for one sample.

    Args:
        model: any module; run once, in eval mode, and left as it was. (fvcore traces with
            torch.jit, which has no meta device for convolutions.)
        inputs: positional arguments of one forward call with batch 1. Without them only
            parameters are counted, and ``note`` says why.
    """
    if inputs is None:
        return _cost(model, {}, None, {}, (), NO_INPUTS)
    with _quiet(), evaluating(model):
        analysis = FlopCountAnalysis(model, tuple(inputs))
        analysis.set_op_handle("aten::_convolution_mode", _convolution_mode)
        analysis.unsupported_ops_warnings(enabled=False)
        analysis.uncalled_modules_warnings(enabled=False)
        by_module = dict(analysis.by_module())
        unsupported = dict(analysis.unsupported_ops())
        uncalled = tuple(sorted(analysis.uncalled_modules()))
    return _cost(model, by_module, int(by_module[""]), unsupported, uncalled, None)


def _cost(
    model: nn.Module,
    by_module: dict[str, Any],
    macs: int | None,
    unsupported: dict[str, int],
    uncalled: tuple[str, ...],
    note: str | None,
) -> Cost:
    return Cost(
        params=_params(model),
        macs=macs,
        layers=tuple(
            LayerCost(
                name=name,
                type=type(module).__name__,
                params=_params(module),
                macs=int(by_module.get(name, 0)) if macs is not None else None,
            )
            for name, module in model.named_modules()
            if name
        ),
        unsupported=unsupported,
        uncalled=uncalled,
        note=note,
    )
