"""Replace the noise injections of a flat graph by explicit additions, or remove them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from dsconvert.config.choices import Noise
from dsconvert.errors import ExportError
from dsconvert.forms.layers import AddNoise
from dsconvert.forms.nodes import module_of, replace_node, sized
from dsconvert.model.inputs import fresh_args
from dsconvert.model.model_types import Types
from dsconvert.model.observe import evaluating
from dsconvert.model.plain_layers import computes_as

NOISE_INPUT = "noise"
DRAWS = (
    "it draws random numbers by itself; put that into a module that does nothing but "
    "'x + weight * noise', and name its class with noise_types, "
)


@dataclass(frozen=True, kw_only=True)
class Plane:
    """One noise injection: its module, and the size of the plane that it adds."""

    module: str
    height: int
    width: int


def draw(
    planes: tuple[Plane, ...],
    n: int,
    generator: torch.Generator | None = None,
    *,
    device: torch.device | None = None,
) -> Tensor:
    """Draw normal numbers (n, K) for all planes, on ``device`` (None: the CPU).

    They are drawn plane by plane, as the original does: the same random state gives the same image.
    """
    where = torch.device("cpu") if device is None else device
    parts = [
        torch.randn(n, 1, p.height, p.width, generator=generator, device=where) for p in planes
    ]
    if not parts:
        return torch.zeros(n, 0, device=where)
    return torch.cat([p.flatten(1) for p in parts], 1)


def take_noise_out(
    module: fx.GraphModule, types: Types, noise: Noise, seed: int, noise_input: str
) -> tuple[Plane, ...]:
    """Replace the noise injections of ``module``, in place; return them in execution order.

    Raises:
        ExportError: one does not just add a weighted plane.
    """
    graph = module.graph
    found: list[tuple[fx.Node, Plane]] = []
    for node in graph.nodes:
        kind = module_of(module, node)
        # One with its own forward, or with a plane that it is given, stays as it is.
        if kind is None or not computes_as(kind, *types) or len(node.all_input_nodes) != 1:
            continue
        shape = sized(node)
        weight = getattr(kind, "weight", None)
        if shape is None or len(shape) != 4 or not isinstance(weight, Tensor):
            raise ExportError(
                f"the noise injection {node.target} ({type(kind).__name__}) has no weight, or adds "
                "to no (N, C, H, W) map; only 'x + weight * plane' can be exported."
            )
        found.append((node, Plane(module=str(node.target), height=shape[2], width=shape[3])))
    planes = tuple(p for _, p in found)
    if noise == "zero" or not found:
        for node, _ in found:
            replace_node(graph, node, _noisy(node))
        return planes
    source: fx.Node | None = None
    if noise == "random":
        last = [n for n in graph.nodes if n.op == "placeholder"][-1]
        with graph.inserting_after(last):
            source = graph.placeholder(noise_input)
    numbers = draw(planes, 1, torch.Generator().manual_seed(seed)) if source is None else None
    offset = 0
    for i, (node, plane) in enumerate(found):
        injection = AddNoise(module_of(module, node).weight.detach().clone())  # type: ignore[union-attr]
        name = f"add_noise_{i}"
        module.add_submodule(name, injection)
        size = plane.height * plane.width
        with graph.inserting_before(node):
            if source is not None:
                part = graph.call_function(torch.narrow, (source, 1, offset, size))
                shape = (-1, 1, plane.height, plane.width)
                values = graph.call_method("reshape", (part, *shape))
            else:
                assert numbers is not None
                buffer = numbers[:, offset : offset + size].reshape(1, 1, plane.height, plane.width)
                dtype = injection.weight.dtype
                module.register_buffer(
                    f"plane_{i}", buffer.to(injection.weight.device, dtype).clone()
                )
                values = graph.get_attr(f"plane_{i}")
            new = graph.call_module(name, (_noisy(node), values))
        new.meta = dict(node.meta)
        replace_node(graph, node, new)
        offset += size
    return planes


def _noisy(node: fx.Node) -> Any:
    """Return the map that a noise injection adds to: its first argument, also by name."""
    return node.args[0] if node.args else next(iter(node.kwargs.values()))


def check_silent(module: nn.Module, args: list[Tensor], name: str, noise: Noise) -> None:
    """Check that ``module`` returns the same image at each call.

    Raises:
        ExportError: it does not.
    """
    images: list[Tensor] = []
    for seed in (0, 1):
        with evaluating(module):
            torch.manual_seed(seed)
            images.append(module(*fresh_args(args)))
    if not torch.equal(images[0].nan_to_num(), images[1].nan_to_num()):
        raise ExportError(
            f"noise={noise!r} is not possible for this {name}: {DRAWS}or take noise='random'."
        )
