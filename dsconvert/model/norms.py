"""Weight reparametrisations (spectral norm, weight norm; hooks and parametrizations alike).

A layer of a codebase's own class may normalise its kernel itself
(:class:`~dsconvert.util.module_protocols.NormalisesWeight`).

``effective_weight`` is the kernel *as applied* in eval mode; ``fold`` makes it the plain
parameter; ``respectralise`` puts spectral norm on a factor and returns the scale that it removes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, spectral_norm

from dsconvert.model.one_dimensional import Convolution, TransposedTypes
from dsconvert.records import NormKind
from dsconvert.util.module_protocols import normalises_weight

_HOOKS = ("SpectralNorm", "WeightNorm")
_POWER_ITERATIONS = 50


def norm_kind(module: nn.Module) -> NormKind:
    """Return the weight reparametrisation of ``module.weight``, or "none"."""
    if normalises_weight(module):
        return "own"
    if parametrize.is_parametrized(module, "weight"):
        inner = module.parametrizations["weight"]  # type: ignore[index]
        spectral = any(type(p).__name__ == "_SpectralNorm" for p in inner)
        return "spectral-param" if spectral else "weight-param"
    for hook in module._forward_pre_hooks.values():
        if type(hook).__name__ in _HOOKS:
            return "spectral-hook" if type(hook).__name__ == "SpectralNorm" else "weight-hook"
    return "none"


def other_hooks(module: nn.Module) -> bool:
    """Return whether ``module`` has call hooks besides a weight reparametrisation."""
    before = module._forward_pre_hooks.values()
    return bool(module._forward_hooks) or any(type(h).__name__ not in _HOOKS for h in before)


def effective_weight(module: nn.Module) -> Tensor:
    """Return the weight as applied in eval mode, without a power iteration or other change."""
    if normalises_weight(module):
        with torch.no_grad():
            return module.applied_weight().detach()
    was = module.training
    module.eval()
    try:
        with torch.no_grad():
            hooks: list[Any] = list(module._forward_pre_hooks.values())
            for hook in hooks:
                if type(hook).__name__ == "SpectralNorm":
                    return hook.compute_weight(module, do_power_iteration=False).detach()
                if type(hook).__name__ == "WeightNorm":
                    return hook.compute_weight(module).detach()
            weight = module.weight
            if not isinstance(weight, Tensor):
                raise TypeError(f"{type(module).__name__} has no weight tensor")
            return weight.detach()
    finally:
        module.train(was)


def trainable(module: nn.Module) -> bool:
    """Return whether the module's weights, or a tensor behind one, require a gradient."""
    return any(p.requires_grad for n, p in module.named_parameters() if not _is_bias(n))


def trainable_bias(module: nn.Module) -> bool:
    """Return whether a bias of the module requires a gradient; without one, as its weights."""
    found = [p.requires_grad for n, p in module.named_parameters() if _is_bias(n)]
    return any(found) if found else trainable(module)


def train_alike(new: nn.Module, old: nn.Module) -> None:
    """Let weights and biases of ``new`` require a gradient where those of ``old`` do."""
    weight, bias = trainable(old), trainable_bias(old)
    for name, parameter in new.named_parameters():
        parameter.requires_grad_(bias if _is_bias(name) else weight)


def _is_bias(name: str) -> bool:
    return "bias" in name.split(".")


def fold(module: nn.Module) -> None:
    """Replace a reparametrised weight by an equal plain parameter (exact in eval mode)."""
    kind = norm_kind(module)
    if kind == "none":
        return
    if normalises_weight(module):
        module.fold()
        return
    needs_grad = trainable(module)
    weight = effective_weight(module).clone()
    if kind.endswith("param"):
        was = module.training
        module.eval()
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
        module.train(was)
    else:
        _remove_hooks(module)
    module.weight = nn.Parameter(weight, requires_grad=needs_grad)


def _remove_hooks(module: nn.Module) -> None:
    for table in (
        module._forward_pre_hooks,
        module._state_dict_hooks,
        module._load_state_dict_pre_hooks,
    ):
        for key, hook in list(table.items()):
            inner = getattr(hook, "hook", hook)
            if type(inner).__name__.startswith(_HOOKS) or type(hook).__name__.startswith(_HOOKS):
                del table[key]
    for name in ("weight_orig", "weight_u", "weight_v", "weight_g"):
        module._parameters.pop(name, None)
        module._buffers.pop(name, None)
    module.__dict__.pop("weight", None)


def respectralise(module: Convolution) -> float:
    """Put (hook-style) spectral norm on a plain convolution, with a converged u and v.

    Returns:
        sigma: the applied weight is now smaller by this factor.
    """
    weight = module.weight.detach().clone()
    needs_grad = module.weight.requires_grad
    dim = 1 if isinstance(module, TransposedTypes) else 0
    with torch.random.fork_rng():
        torch.manual_seed(0)
        spectral_norm(module, dim=dim)
    matrix = weight.transpose(0, dim).flatten(1).double()
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(matrix.shape[1], generator=generator, dtype=torch.float64, device="cpu")
    v = v.to(matrix.device)
    u = matrix @ v
    for _ in range(_POWER_ITERATIONS):
        u = nn.functional.normalize(matrix @ v, dim=0)
        v = nn.functional.normalize(matrix.t() @ u, dim=0)
    # The module divides by this value, converged or not: the returned scale is exact.
    sigma = float(u @ (matrix @ v))
    if sigma <= 0.0:
        return 1.0
    with torch.no_grad():
        module.get_buffer("weight_u").copy_(u)
        module.get_buffer("weight_v").copy_(v)
    module.get_parameter("weight_orig").requires_grad_(needs_grad)
    return sigma
