"""Model -> Core: one flat graph of plain ``torch.nn`` modules, with the noise as a separate input.

Every export and :func:`dsconvert.forms.deployed` start from it. Norms are folded into the
kernels, batch normalisation into the convolution in front of it (exact in eval mode), and each
noise injection becomes an explicit addition, so that the graph is a function of its inputs.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from dsconvert.adapter import Adapter, adapter_for, image_path
from dsconvert.config.choices import NOISES, Noise
from dsconvert.errors import ExportError, UsageError
from dsconvert.forms.batchnorm import fold_batch_norms
from dsconvert.forms.call import Call, call_of
from dsconvert.forms.gates import unify_gates
from dsconvert.forms.nodes import Shapes, drop_dead, sized
from dsconvert.forms.noise import NOISE_INPUT, Plane, check_silent, draw, take_noise_out
from dsconvert.model.copying import isolated_copy
from dsconvert.model.graph import trace_graph
from dsconvert.model.inputs import fresh_args
from dsconvert.model.model_types import Types, types_of
from dsconvert.model.norms import fold, norm_kind
from dsconvert.model.observe import evaluating


@dataclass(frozen=True, kw_only=True, eq=False)
class Core:
    """A generator as one flat graph.

    ``module`` takes the tensors named in ``inputs``, in that order. With ``noise="random"`` and a
    generator that injects noise the last one is that noise (N, K): standard normal numbers, the
    planes of all injections in execution order, each (height, width) row by row.
    """

    module: fx.GraphModule
    inputs: tuple[str, ...]
    call: Call
    """The arguments of the original; the graph may not use all of its tensors."""
    noise_input: str | None
    """The name of the noise input: ``noise``, unless the original has an argument of that name."""
    planes: tuple[Plane, ...]
    noise: Noise
    seed: int
    image_path: tuple[int | str, ...] = ()
    """The place of the images, which the graph returns alone, in what the original returns."""

    @property
    def plane_numbers(self) -> int:
        """K, the number of random numbers for one image."""
        return sum(p.height * p.width for p in self.planes)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the parameters and of the noise."""
        return next(
            (p.dtype for p in self.module.parameters() if p.is_floating_point()), torch.float32
        )

    @property
    def takes_noise(self) -> bool:
        """Whether the noise is an input."""
        return self.noise_input is not None

    @property
    def given(self) -> tuple[str, ...]:
        """The inputs that are arguments of the original."""
        return tuple(name for name in self.inputs if name != self.noise_input)

    def is_batched(self, name: str) -> bool:
        """Whether the first dimension of an input is the batch."""
        return name == self.noise_input or name in self.call.batched

    def select(self, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
        """Return the tensors of a call of the original that the graph uses, without the noise."""
        return tuple(self.call.select(self.call.given(*args), self.given))

    def fixed_planes(self) -> Tensor:
        """Return the numbers (1, K) of ``noise="fixed"``, the same for each seed."""
        return draw(self.planes, 1, torch.Generator().manual_seed(self.seed))


def flatten(
    model: nn.Module,
    examples: tuple[Any, ...],
    *,
    other: tuple[Any, ...] | None = None,
    noise: Noise = "random",
    seed: int = 0,
    noise_types: Types = (),
    leaves: tuple[str, ...] = (),
    adapter: Adapter | None = None,
) -> Core:
    """Return the :class:`Core` of ``model``, which does not change.

    Args:
        model: a generator; used in eval mode.
        examples: positional arguments of one forward call.
        other: those of a call with another batch size, which shows the batched arguments.
        noise: the treatment of noise injections: removed (``zero``), the same planes for every
            image (``fixed``) or an input (``random``).
        seed: of the fixed planes.
        noise_types: classes that add freshly drawn noise, besides those that an adapter names.
        leaves: names of modules that torch.fx must not trace into.
        adapter: the model's adapter; None: the installed one that knows the model.

    Raises:
        TraceError: the model can't be traced.
        ExportError: a noise injection can't be removed, or an unknown one remains where there must
            be no noise; or the image does not depend on the arguments.
        AdapterError: the model returns several maps, and none is clearly the image.
        UsageError: an unknown noise, or the model does not take these arguments.
    """
    if noise not in NOISES:
        raise UsageError(f"no noise is called {noise!r}; choose {', '.join(NOISES)}.")
    known = adapter_for(model) if adapter is None else adapter
    types = types_of(model, known, noises=noise_types)
    call = call_of(model, examples, other)
    tensors = fresh_args(call.select(call.given(*examples), tuple(call.tensors)))
    twin = isolated_copy(model).eval().requires_grad_(False)
    _fold_norms(twin)
    # Conditional normalisations are traced through: they consist of plain operations.
    recorded = trace_graph(
        twin, examples=examples, leaf_types=types.noises, leaf_names=frozenset(leaves)
    )
    recorded.give_constants(twin)
    module = fx.GraphModule(twin, recorded.graph)
    _name_inputs(module, tuple(call.tensors))
    _drop_unused_inputs(module)
    by_name = dict(zip(call.tensors, tensors, strict=True))
    used = [by_name[name] for name in _inputs(module)]
    with evaluating(module):
        output = Shapes(module).run(*used)
    path = image_path(output, sounds=True)
    _image_only(module, path)
    _drop_unused_inputs(module)
    if not any(name in call.batched for name in _inputs(module)):
        raise ExportError(
            f"the image of this {type(model).__name__} depends on none of its arguments whose "
            "first dimension is the batch, so there is nothing to give an export."
        )
    noise_input = NOISE_INPUT
    while noise_input in call.tensors:
        noise_input += "_"
    planes = take_noise_out(module, types.noises, noise, seed, noise_input)
    unify_gates(module)
    fold_batch_norms(module)
    drop_dead(module.graph)
    module.delete_all_unused_submodules()
    module.recompile()
    # Our tracer needs arguments; an unpickled module is traced with every child as a leaf.
    module._tracer_cls = None  # pyright: ignore[reportPrivateUsage]
    inputs = _inputs(module)
    if noise != "random":
        check_silent(module, [by_name[name] for name in inputs], type(model).__name__, noise)
    return Core(
        module=module,
        inputs=inputs,
        call=call,
        noise_input=noise_input if noise_input in inputs else None,
        planes=planes,
        noise=noise,
        seed=seed,
        image_path=path,
    )


def _inputs(module: fx.GraphModule) -> tuple[str, ...]:
    """Return the names of the graph's inputs; a node may have another (``input`` is Python's)."""
    return tuple(str(n.target) for n in module.graph.nodes if n.op == "placeholder")


def _name_inputs(module: fx.GraphModule, names: tuple[str, ...]) -> None:
    """Name the inputs of the graph, the tensors of the call in order, by ``names``."""
    placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
    for node, name in zip(placeholders, names, strict=True):
        node.target = name
    module.recompile()


def _fold_norms(model: nn.Module) -> None:
    with torch.no_grad():
        for module in model.modules():
            if norm_kind(module) != "none":
                fold(module)


def _drop_unused_inputs(module: fx.GraphModule) -> None:
    """Remove inputs that no node reads: an unconditional generator's class, ``**kwargs``, defaults.

    torch.fx records a check for an argument that keeps its default; it is removed, too.
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


def _image_only(module: fx.GraphModule, path: tuple[int | str, ...]) -> None:
    """Let the graph return the images alone; ``path`` leads to them in its output."""
    graph = module.graph
    output = next(n for n in graph.nodes if n.op == "output")
    found: Any = output.args[0]
    with graph.inserting_before(output):
        for key in path:
            # A leaf returns its list or tuple as one value.
            opaque = isinstance(found, fx.Node)
            found = graph.call_function(operator.getitem, (found, key)) if opaque else found[key]
    output.args = (found,)
    drop_dead(graph)
    module.recompile()


def largest_map(core: Core) -> int:
    """Return the bytes of the largest (N, C, H, W) value of one image in the example run."""
    sizes = [
        math.prod(shape[1:]) * node.meta["tensor_meta"].dtype.itemsize
        for node in core.module.graph.nodes
        if (shape := sized(node)) is not None and len(shape) == 4
    ]
    return max(sizes, default=0)
