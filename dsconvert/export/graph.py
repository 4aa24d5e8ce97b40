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
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from dsconvert.adapter import adapter_for
from dsconvert.errors import ExportError, UsageError
from dsconvert.export.layers import AddNoise
from dsconvert.norms import fold, norm_kind
from dsconvert.observe import evaluating
from dsconvert.records import NOISES, Noise
from dsconvert.rewrite import copied
from dsconvert.trace import ConvTypes, trace

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
    _gates(module)
    _fold_batch_norms(module)
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


def sized(node: Any) -> tuple[int, ...] | None:
    """The shape of a node's value in the example run."""
    meta = node.meta.get("tensor_meta") if isinstance(node, fx.Node) else None
    shape = getattr(meta, "shape", None)
    return None if shape is None else tuple(shape)


def module_of(module: fx.GraphModule, node: Any) -> nn.Module | None:
    """The module that ``node`` calls, if it calls one."""
    if isinstance(node, fx.Node) and node.op == "call_module":
        return module.get_submodule(str(node.target))
    return None


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


def replace_node(graph: fx.Graph, node: fx.Node, by: Any) -> None:
    """Let ``by`` stand for ``node`` everywhere, and take ``node`` out."""
    node.replace_all_uses_with(by)
    graph.erase_node(node)


def only_user(node: fx.Node) -> fx.Node | None:
    """The one node that reads ``node``, if it is one."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def _gates(module: fx.GraphModule) -> None:
    """Gated linear units, however they are spelt, become ``F.glu``: one operator, one kernel."""
    graph = module.graph
    for node in list(graph.nodes):
        kind = module_of(module, node)
        source: Any = None
        if kind is not None and len(node.args) == 1 and is_gate(kind):
            source = node.args[0]
        elif node.target in (operator.mul, torch.mul) or (
            node.op == "call_method" and node.target == "mul"
        ):
            source = _gated(node)
        if not isinstance(source, fx.Node):
            continue
        with graph.inserting_before(node):
            new = graph.call_function(F.glu, (source, 1))
        new.meta = dict(node.meta)
        replace_node(graph, node, new)
    graph.eliminate_dead_code()


def _gated(node: fx.Node) -> fx.Node | None:
    """``x`` of ``x.chunk(2, 1)[0] * sigmoid(x.chunk(2, 1)[1])``, if that is what ``node`` is."""
    if len(node.args) != 2:
        return None
    for value, gate in (node.args, node.args[::-1]):
        if not isinstance(value, fx.Node) or not isinstance(gate, fx.Node):
            continue
        if gate.target not in (torch.sigmoid, F.sigmoid, "sigmoid") or len(gate.args) != 1:
            continue
        second = gate.args[0]
        if not isinstance(second, fx.Node) or second.target is not operator.getitem:
            continue
        if value.target is not operator.getitem:
            continue
        (halves, one), (other, two) = value.args, second.args
        if halves is other and (one, two) == (0, 1) and _is_halving(halves):
            return halves.args[0]  # type: ignore[union-attr]
    return None


def _is_halving(node: Any) -> bool:
    if not isinstance(node, fx.Node) or node.target not in (torch.chunk, "chunk"):
        return False
    options = [*node.args[1:], *node.kwargs.values()]
    return options == [2, 1]


def is_gate(module: nn.Module) -> bool:
    """Whether ``module`` computes a gated linear unit over channels.

    A module that can't be looked into (the official GLU asserts on a shape) is known by what it
    does: without state, and equal to ``F.glu`` on random numbers.
    """
    if isinstance(module, nn.GLU):
        return module.dim == 1
    state = (*module.parameters(), *module.buffers(), *module.children())
    if state or type(module).__module__.startswith("torch."):
        return False
    probe = torch.randn(2, 6, 3, 5, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            found: Any = module(probe.clone())
            return (
                isinstance(found, Tensor)
                and torch.equal(found, module(probe.clone()))
                and (
                    found.shape == (2, 3, 3, 5)
                    and torch.allclose(found, F.glu(probe, 1), rtol=1e-5, atol=1e-6)
                )
            )
    except Exception:  # it wants something else: no gate
        return False


def _fold_batch_norms(module: fx.GraphModule) -> None:
    """Batch normalisation into the convolution in front, through a noise injection in between."""
    graph = module.graph
    calls: dict[str, int] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls[str(node.target)] = calls.get(str(node.target), 0) + 1
    for node in list(graph.nodes):
        norm = module_of(module, node)
        if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None:
            continue
        before: Any = node.args[0]
        injection = module_of(module, before)
        if isinstance(injection, AddNoise):
            if len(before.users) != 1 or calls[str(before.target)] != 1:
                continue
            site: Any = before.args[0]
        else:
            injection, site = None, before
        conv = module_of(module, site)
        if not isinstance(conv, ConvTypes) or len(site.users) != 1 or calls[str(site.target)] != 1:
            continue
        scale, shift = affine_of(norm)
        absorb(conv, scale, shift)
        if injection is not None:
            injection.scale(scale)
        replace_node(graph, node, before)


def affine_of(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift (C,) of a batch normalisation in eval mode, in float64."""
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None
    assert var is not None
    scale = (var.double() + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight.detach().double()
    shift = -mean.double() * scale
    return scale, shift + norm.bias.detach().double() if norm.affine else shift


def absorb(conv: nn.Conv2d | nn.ConvTranspose2d, scale: Tensor, shift: Tensor) -> None:
    """Make ``conv`` compute ``scale * conv(x) + shift``, channel by channel."""
    weight = conv.weight.detach().double()
    if isinstance(conv, nn.ConvTranspose2d):
        # (I, O / groups, kh, kw): the outputs of a group lie together.
        per_group = scale.reshape(conv.groups, 1, -1, 1, 1)
        wide = weight.reshape(conv.groups, -1, *weight.shape[1:]) * per_group
        weight = wide.reshape(weight.shape)
    else:
        weight = weight * scale.reshape(-1, 1, 1, 1)
    bias = shift if conv.bias is None else conv.bias.detach().double() * scale + shift
    kind, device = conv.weight.dtype, conv.weight.device
    conv.weight = nn.Parameter(weight.to(device, kind), requires_grad=False)
    conv.bias = nn.Parameter(bias.to(device, kind), requires_grad=False)


def largest_map(core: Core) -> int:
    """Bytes of the largest (N, C, H, W) value of one image in the example run."""
    sizes = [
        math.prod(shape[1:]) * node.meta["tensor_meta"].dtype.itemsize
        for node in core.module.graph.nodes
        if (shape := sized(node)) is not None and len(shape) == 4
    ]
    return max(sizes, default=0)
