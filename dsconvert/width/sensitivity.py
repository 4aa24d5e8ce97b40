"""The effect of an error in a layer's output on the model's output, by reverse differentiation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dsconvert.errors import NoGradientsError
from dsconvert.model.editing import trainable
from dsconvert.model.gradients import differentiating
from dsconvert.model.inputs import fresh_args, tensors_of


def samples_of(arguments: tuple[Any, ...]) -> int:
    """Return the batch size of one call: the length of its first tensor that has dimensions."""
    return next((len(t) for t in tensors_of(arguments) if t.ndim), 1)


def outputs_by_sample(model: nn.Module, arguments: tuple[Any, ...]) -> list[Tensor]:
    """Run a model; return the floating-point tensors in its result that belong to the samples.

    These have one row for each sample, or several (the frames of a video). Others, such as a loss
    (), say nothing about a sample.

    Args:
        model: is run.
        arguments: of one call.

    Raises:
        NoGradientsError: there is no such tensor.
    """
    made, samples = tensors_of(model(*fresh_args(arguments))), samples_of(arguments)
    found = [t for t in made if t.is_floating_point() and t.numel() and t.ndim]
    found = [t for t in found if len(t) % samples == 0]
    if not found:
        shown = ", ".join(f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for t in made)
        raise NoGradientsError(
            f"the model returns {shown or 'no tensor'} for {samples} samples. The loss of fewer "
            "channels is measured on a floating-point tensor with a row for each sample, and there "
            "is none: keep the width (--width 1, width=1), or wrap the model in a module that "
            "returns its images as such a tensor."
        )
    return found


def sensitivities(
    model: nn.Module, names: Iterable[str], batches: Sequence[tuple[Any, ...]], *, seed: int = 0
) -> tuple[dict[str, Tensor], float]:
    """Return the squared gradients of the output with respect to the outputs of some layers.

    For independent errors e of a layer's output, the expected squared error of the model's output
    is ``sum_o w_o E[e_o^2]`` to first order, with ``w_o`` the squared column norms of the Jacobian,
    summed over positions. One product of the Jacobian with a random vector a sample estimates them
    (Hutchinson 1990).

    Args:
        model: a copy in eval mode, which may be run and differentiated.
        names: layers whose output has its channels in dimension 1 (or last, for a linear layer).
        batches: arguments of forward calls.
        seed: of the random vectors and of the model's own draws.

    Raises:
        NoGradientsError: the model can't be differentiated, or returns nothing to differentiate.

    Returns:
        ``w`` (O,) by name, and the variance of one output, summed over its elements.
    """
    weights: dict[str, Tensor] = {}
    count = 0
    handles: list[Any] = []

    def add(name: str, dim: int, gradient: Tensor) -> None:
        energy = gradient.detach().double().square()
        other = [d for d in range(energy.ndim) if d != dim]
        weights[name] = weights.get(name, 0) + energy.sum(other).cpu()

    def record(name: str, module: nn.Module) -> Any:
        def hook(_m: nn.Module, _args: Any, output: Tensor) -> None:
            dim = output.ndim - 1 if isinstance(module, nn.Linear) else 1
            output.register_hook(lambda g: add(name, dim, g))

        return hook

    for name in names:
        layer = model.get_submodule(name)
        trainable(layer, True)
        handles.append(layer.register_forward_hook(record(name, layer)))
    spread, images = 0.0, []
    try:
        with torch.random.fork_rng(), differentiating():
            torch.manual_seed(seed)
            for batch in batches:
                outputs = outputs_by_sample(model, batch)
                product = sum((t * torch.randn_like(t)).sum() for t in outputs)
                rows = [t.detach().double().reshape(samples_of(batch), -1) for t in outputs]
                count += len(rows[0])
                images.append(torch.cat(rows, 1))
                if isinstance(product, Tensor):
                    torch.autograd.backward(product, inputs=_leaves(model))
                model.zero_grad(set_to_none=True)
    finally:
        for handle in handles:
            handle.remove()
    whole = torch.cat(images)
    spread = float((whole - whole.mean(0)).square().sum() / max(1, len(whole) - 1))
    return {name: w / count for name, w in weights.items()}, spread


def _leaves(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]
