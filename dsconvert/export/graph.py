"""Model -> Core: one flat graph of plain ``torch.nn`` parts, with the noise as an input of its own.

This is what every export and :func:`dsconvert.export.deploy` start from. Norms are folded into the
kernels, batch normalisation into the convolution in front of it (exact in eval mode), and each
noise injection becomes an explicit addition, so that the graph is a function of its inputs.
"""

from __future__ import annotations

import inspect
import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from dsconvert.adapter import adapter_for
from dsconvert.errors import ExportError, UsageError
from dsconvert.export.batchnorm import fold_batch_norms
from dsconvert.export.gates import unify_gates
from dsconvert.export.layers import AddNoise
from dsconvert.export.nodes import module_of, replace_node, sized
from dsconvert.norms import fold, norm_kind
from dsconvert.observe import evaluating
from dsconvert.records import NOISES, Noise
from dsconvert.rewrite import copied
from dsconvert.trace import trace

NOISE_INPUT = "noise"


@dataclass(frozen=True, kw_only=True)
class Plane:
    """One noise injection: where it stands, and the size of the plane that it adds."""

    module: str
    height: int
    width: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Core:
    """A generator as one flat graph.

    ``module`` takes the tensors named in ``inputs``, in that order. With ``noise="random"`` and a
    generator that injects noise the last one is ``noise`` (N, K): standard normal numbers, the
    planes of all injections in execution order, each (height, width) row by row.
    """

    module: fx.GraphModule
    inputs: tuple[str, ...]
    arguments: tuple[str, ...]
    """Positional arguments of the original's ``forward``; some may play no part."""
    planes: tuple[Plane, ...]
    noise: Noise
    seed: int

    @property
    def plane_numbers(self) -> int:
        """K: how many random numbers one image takes."""
        return sum(p.height * p.width for p in self.planes)

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters, and so of the noise."""
        return next(
            (p.dtype for p in self.module.parameters() if p.is_floating_point()), torch.float32
        )

    @property
    def takes_noise(self) -> bool:
        """Whether the noise is an input."""
        return NOISE_INPUT in self.inputs

    def select(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments of the original that the graph uses, without the noise."""
        return tuple(
            a for name, a in zip(self.arguments, args, strict=False) if name in self.inputs
        )

    def fixed_planes(self) -> Tensor:
        """The numbers (1, K) of ``noise="fixed"``: always the same for a seed."""
        return draw(self.planes, 1, torch.Generator().manual_seed(self.seed))


def draw(planes: tuple[Plane, ...], n: int, generator: torch.Generator | None = None) -> Tensor:
    """Normal numbers (n, K) for all planes.

    Drawn plane by plane on the CPU, as a run of the original would: the same random state gives
    the same picture.
    """
    parts = [torch.randn(n, 1, p.height, p.width, generator=generator) for p in planes]
    return torch.cat([p.flatten(1) for p in parts], 1) if parts else torch.zeros(n, 0)


def flatten(
    model: nn.Module,
    examples: tuple[Any, ...],
    *,
    noise: Noise = "random",
    seed: int = 0,
    noise_types: tuple[type[nn.Module], ...] = (),
    leaves: tuple[str, ...] = (),
) -> Core:
    """The :class:`Core` of ``model``, which is left as it was.

    Args:
        model: a generator; used in eval mode.
        examples: positional arguments of one forward call.
        noise: what becomes of noise injections: left out (``zero``), the same planes for every
            image (``fixed``) or an input (``random``).
        seed: of the fixed planes.
        noise_types: classes that add freshly drawn noise, besides those that an adapter names.
        leaves: names of modules that torch.fx must not look into.

    Raises:
        TraceError: the model can't be traced.
        ExportError: a noise injection is not of a kind that can be taken out.
        UsageError: no noise is called so.
    """
    if noise not in NOISES:
        raise UsageError(f"no noise is called {noise!r}; choose {', '.join(NOISES)}.")
    adapter = adapter_for(model)
    types = (*noise_types, *(adapter.noise_types() if adapter else ()))
    names = tuple(
        p.name
        for p in inspect.signature(model.forward).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    )
    twin = copied(model).eval().requires_grad_(False)
    _fold_norms(twin)
    # The conditional normalisations are traced through: what they do to the scale is plain.
    graph = trace(twin, example_inputs=examples, leaves=leaves, leaf_types=types).graph
    module = fx.GraphModule(twin, graph)
    _drop_unused_inputs(module)
    ordered = [n.name for n in module.graph.nodes if n.op == "placeholder"]
    used = [a for name, a in zip(names, examples, strict=False) if name in ordered]
    _image_only(module)
    with evaluating(module):
        ShapeProp(module).propagate(*used)
    planes = _take_noise_out(module, types, noise, seed)
    unify_gates(module)
    fold_batch_norms(module)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    # Ours wants to be told what a leaf is; when unpickled, every module is one.
    module._tracer_cls = None  # pyright: ignore[reportPrivateUsage]
    inputs = tuple(n.name for n in module.graph.nodes if n.op == "placeholder")
    return Core(
        module=module, inputs=inputs, arguments=names, planes=planes, noise=noise, seed=seed
    )


def _fold_norms(model: nn.Module) -> None:
    with torch.no_grad():
        for module in model.modules():
            if norm_kind(module) != "none":
                fold(module)


def _drop_unused_inputs(module: fx.GraphModule) -> None:
    """Inputs that nothing reads: an unconditional generator's class, ``**kwargs``, defaults.

    Of an argument that keeps its default torch.fx leaves a check that it does.
    """
    graph = module.graph
    for node in list(graph.nodes):
        if node.target is not getattr(torch, "_assert"):  # noqa: B009 - private to type checkers
            continue
        test = node.args[0]
        if isinstance(test, fx.Node) and test.target is operator.eq:
            graph.erase_node(node)
            graph.erase_node(test)
    for node in list(graph.nodes):
        if node.op == "placeholder" and not node.users:
            graph.erase_node(node)
    module.recompile()


def _image_only(module: fx.GraphModule) -> None:
    """The first tensor of what is returned, as :func:`dsconvert.adapter.image_tensor` takes it."""
    for node in module.graph.nodes:
        if node.op == "output":
            found: Any = node.args[0]
            while isinstance(found, list | tuple) and found:
                found = found[0]
            node.args = (found,)
    module.graph.eliminate_dead_code()


def _take_noise_out(
    module: fx.GraphModule, types: tuple[type[nn.Module], ...], noise: Noise, seed: int
) -> tuple[Plane, ...]:
    graph = module.graph
    found: list[tuple[fx.Node, Plane]] = []
    for node in graph.nodes:
        kind = module_of(module, node)
        if kind is None or not isinstance(kind, types):
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
            replace_node(graph, node, node.args[0])
        return planes
    source: fx.Node | None = None
    if noise == "random":
        last = [n for n in graph.nodes if n.op == "placeholder"][-1]
        with graph.inserting_after(last):
            source = graph.placeholder(NOISE_INPUT)
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
            new = graph.call_module(name, (node.args[0], values))
        new.meta = dict(node.meta)
        replace_node(graph, node, new)
        offset += size
    return planes


def largest_map(core: Core) -> int:
    """Bytes of the largest (N, C, H, W) value of one image in the example run."""
    sizes = [
        math.prod(shape[1:]) * node.meta["tensor_meta"].dtype.itemsize
        for node in core.module.graph.nodes
        if (shape := sized(node)) is not None and len(shape) == 4
    ]
    return max(sizes, default=0)
