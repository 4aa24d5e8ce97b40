"""Parameters and MACs, counted by fvcore.

The counted operators are fvcore's, one multiply-accumulate as one (a MAC, not two FLOPs):
convolutions (plain, grouped, transposed: input positions x kernel x I x O / groups), matrix
products, and, at one or a few operations an element, normalisations and resampling, which are
0.2 % of an official generator. Element-wise operators (activations, noise) and small products in
spectral norm's hook (``mv``, ``dot``, ``div``) are not counted; ``Cost.unsupported`` lists them.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import nn

from dsconvert.model.copying import isolated_copy
from dsconvert.model.inputs import map_tensors, tensors_of
from dsconvert.model.model_types import check_leaves
from dsconvert.model.observe import evaluating
from dsconvert.records import Cost, LayerCost

with warnings.catch_warnings():
    # fvcore scripts a function at import, which today's torch calls deprecated.
    warnings.simplefilter("ignore")
    from fvcore.nn import FlopCountAnalysis
    from fvcore.nn.jit_handles import get_shape

_PRODUCTS = frozenset({"addmm", "baddbmm", "bmm", "einsum", "linear", "matmul"})
"""fvcore's names of matrix products."""
NO_INPUTS = (
    "no MACs: nothing says what the inputs look like (pass inputs= or example_inputs=; in a "
    "command --input, or --calibration FILE.npz)"
)


def _convolution_mode(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Return the MACs of a convolution with ``padding="same"``, which fvcore does not know."""
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


@contextmanager
def _called(model: nn.Module) -> Generator[set[str], None, None]:
    """Collect the names of modules that run, by hooks that are removed at the end."""
    names: set[str] = set()

    def note(name: str) -> Callable[..., None]:
        return lambda *_: names.add(name)

    handles = [m.register_forward_pre_hook(note(name)) for name, m in model.named_modules()]
    try:
        yield names
    finally:
        for handle in handles:
            handle.remove()


def _params(module: nn.Module) -> int:
    # A folded and a reparametrised weight both count once: sigma's vectors are buffers.
    return sum(p.numel() for p in module.parameters())


def _one_sample(inputs: Sequence[Any]) -> tuple[Any, ...]:
    """Return the first sample of a batch: cut every tensor of the first tensor's leading size."""
    sizes = [t.shape[0] for t in tensors_of(tuple(inputs)) if t.dim() > 0]
    if not sizes or sizes[0] < 2:
        return tuple(inputs)
    return map_tensors(
        lambda a: a[:1] if a.dim() > 0 and a.shape[0] == sizes[0] else a, tuple(inputs)
    )


def count(
    model: nn.Module,
    inputs: Sequence[Any] | None = None,
    *,
    leaves: tuple[type[nn.Module], ...] = (),
    named_leaves: Sequence[str] = (),
    own: bool = False,
) -> Cost:
    """Count ``model`` for one sample.

    Args:
        model: any module; a copy of it is run once, in eval mode. (fvcore traces with torch.jit,
            which has no meta device for convolutions.)
        inputs: positional arguments of one forward call; of a batch, the first sample is used.
            Without them only parameters are counted, and ``note`` says why.
        leaves: classes that use their children's weights without calling them; what is inside one
            that ran is not reported as uncalled.
        named_leaves: modules of this kind, by their names.
        own: the copy may share the parameters, since no other code has the model, or its
            ``forward`` writes into none.

    Returns:
        The cost. ``macs`` is None, and ``note`` says why, without inputs and where torch.jit
        can't trace the model (a conversion may continue).

    Raises:
        TraceError: no module has one of the names.
    """
    check_leaves(model, named_leaves)
    if inputs is None:
        return _cost(model, {}, None, {}, (), NO_INPUTS)
    twin = isolated_copy(model, share_parameters=own)
    one = map_tensors(torch.clone, _one_sample(inputs))
    plain = all(isinstance(a, torch.Tensor) for a in one)
    # torch.jit traces functions of tensors only: everything else is bound.
    root = twin if plain else _Bound(twin, one)
    with _quiet(), evaluating(root):
        analysis = FlopCountAnalysis(root, one if plain else tuple(tensors_of(one)))
        analysis.set_op_handle("aten::_convolution_mode", _convolution_mode)
        analysis.unsupported_ops_warnings(enabled=False)
        analysis.uncalled_modules_warnings(enabled=False)
        try:
            with _called(twin) as called:
                operators = {
                    _inner(k, plain): v for k, v in analysis.by_module_and_operator().items()
                }
        except Exception as error:  # the user's forward and torch.jit may raise anything
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            return _cost(model, {}, None, {}, (), f"no MACs: fvcore can't run it ({reason})")
        unsupported = dict(analysis.unsupported_ops())
        # fvcore also takes a module that leaves no operator behind (nn.Identity) for uncalled.
        used = tuple(
            f"{n}."
            for n, m in twin.named_modules()
            if n in called and (isinstance(m, leaves) or n in named_leaves)
        )
        idle = {_inner(k, plain) for k in analysis.uncalled_modules()} - called
        uncalled = tuple(sorted(n for n in idle if n and not n.startswith(used)))
    by_module = {name: sum(each.values()) for name, each in operators.items()}
    made = _cost(model, by_module, int(by_module[""]), unsupported, uncalled, None)
    return replace(
        made,
        functional=_functional(twin, operators),
        products=int(sum(v for k, v in operators[""].items() if k in _PRODUCTS)),
    )


def _functional(model: nn.Module, operators: dict[str, Counter[str]]) -> dict[str, int]:
    """Return the MACs of the convolutions that modules call as functions, by module."""
    found: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            continue
        inner = (f"{name}.{child}" if name else child for child, _ in module.named_children())
        own = operators[name]["conv"] - sum(operators[n]["conv"] for n in inner if n in operators)
        if own > 0:
            found[name] = int(own)
    return found


def outside(cost: Cost) -> dict[str, int]:
    """Return the MACs of operations that no plan changes, by a name for people.

    Only modules are rewritten, so that a convolution called as a function is one of them.
    """
    found: dict[str, int] = {}
    if cost.functional:
        names = sorted(cost.functional, key=lambda name: -cost.functional[name])
        shown = ", ".join(name or "the model's own forward" for name in names[:2])
        more = f" and {len(names) - 2} more" if len(names) > 2 else ""
        where = f"convolutions called as functions (as F.conv2d) in {shown}{more}"
        found[f"{where}, which no rule rewrites"] = sum(cost.functional.values())
    return found | ({"matrix products": cost.products} if cost.products else {})


class _Bound(nn.Module):
    """A model as a function of the tensors among its arguments."""

    def __init__(self, inner: nn.Module, args: tuple[Any, ...]) -> None:
        super().__init__()
        self.inner = inner
        self._args = args

    def forward(self, *tensors: torch.Tensor) -> Any:
        rest = iter(tensors)
        return self.inner(*map_tensors(lambda _: next(rest), self._args))


def _inner(name: str, plain: bool) -> str:
    """Return the name of a module in the model itself."""
    return name if plain else name.removeprefix("inner").removeprefix(".")


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
