"""Find the convolutions of a model, their surroundings and shapes, and the modules that never run.

Two sources are combined. The torch.fx graph shows the neighbours of each convolution (a nearest
upsample in front of it, a batch normalisation behind it). One observed forward pass on example
inputs shows which modules run, how often, and at which shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx, nn

from dsconvert.model import one_dimensional as row
from dsconvert.model.call_arguments import by_position
from dsconvert.model.graph import ConvTypes, TracedGraph, trace_graph
from dsconvert.model.inputs import as_args
from dsconvert.model.model_types import check_leaves
from dsconvert.model.norms import norm_kind
from dsconvert.model.observe import Observation, observe
from dsconvert.model.plain_layers import computes_as
from dsconvert.model.upsampling import interpolates_x2, nearest_x2
from dsconvert.records import Site, Sites
from dsconvert.util.module_protocols import normalises_weight


def _dead(
    model: nn.Module, observed: Observation, graph: fx.Graph, opaque: dict[str, str]
) -> list[str]:
    """Return the topmost modules with parameters that never run and whose weights are not read."""
    read = [str(n.target) for n in graph.nodes if n.op == "get_attr"]
    # torch's own modules are leaves too (attention reads the weight of a child it never calls).
    leaves = {*opaque, *(str(n.target) for n in graph.nodes if n.op == "call_module")}
    dead: list[str] = []
    for name, module in model.named_modules():
        if not name or next(module.parameters(), None) is None:
            continue
        if any(name == d or name.startswith(f"{d}.") for d in dead):
            continue
        if any(name == r or name.startswith(f"{r}.") or r.startswith(f"{name}.") for r in read):
            continue
        # Inside a leaf the graph can't tell whether a weight is read without a call.
        if any(name.startswith(f"{leaf}.") for leaf in leaves):
            continue
        if not any(ran == name or ran.startswith(f"{name}.") for ran in observed.calls):
            dead.append(name)
    return dead


class _Surroundings:
    """The modules right before and right behind a convolution in the graph."""

    def __init__(
        self,
        model: nn.Module,
        graph: fx.Graph,
        noise_types: tuple[type[nn.Module], ...],
        norm_types: tuple[type[nn.Module], ...],
    ) -> None:
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self._noise = noise_types
        self._norms = (nn.BatchNorm2d, nn.BatchNorm1d, *norm_types)
        self._nodes: dict[str, list[fx.Node]] = {}
        for node in graph.nodes:
            if node.op == "call_module":
                self._nodes.setdefault(str(node.target), []).append(node)

    def _module(self, node: Any) -> nn.Module | None:
        if isinstance(node, fx.Node) and node.op == "call_module":
            return self._modules.get(str(node.target))
        return None

    def _only_user(self, node: fx.Node) -> fx.Node | None:
        return next(iter(node.users)) if len(node.users) == 1 else None

    def nodes(self, name: str) -> int:
        return len(self._nodes.get(name, ()))

    def doubled(self, name: str) -> bool:
        """Return whether a functional nearest x2 upsample feeds ``name`` alone."""
        nodes = self._nodes.get(name, [])
        if len(nodes) != 1 or not nodes[0].args:
            return False
        before = nodes[0].args[0]
        return isinstance(before, fx.Node) and interpolates_x2(before) and len(before.users) == 1

    def look(self, name: str) -> tuple[str | None, str | None, str | None, bool]:
        """Return (upsample, noise, batchnorm, absorbs_scale) around the only call of ``name``."""
        nodes = self._nodes.get(name, [])
        if len(nodes) != 1 or not nodes[0].args:
            return None, None, None, False
        node = nodes[0]
        before = node.args[0]
        upsample = None
        if (
            isinstance(before, fx.Node)
            and nearest_x2(self._module(before))
            and len(before.users) == 1
            and self.nodes(str(before.target)) == 1
        ):
            upsample = str(before.target)
        noise = batchnorm = None
        after = self._only_user(node)
        if after is not None and isinstance(self._module(after), self._noise):
            noise = str(after.target)
            after = self._only_user(after)
        if (
            after is not None
            and isinstance(self._module(after), self._norms)
            and self.nodes(str(after.target)) == 1
        ):
            batchnorm = str(after.target)
        absorbs = batchnorm is not None and (noise is None or self.nodes(noise) == 1)
        return upsample, noise, batchnorm, absorbs


def own_forward(conv: nn.Module) -> str | None:
    """Return the class name of a convolution with its own ``forward`` (timm's same-padding)."""
    known = normalises_weight(conv) or computes_as(conv, *ConvTypes)
    return None if known else type(conv).__name__


def _aliases(model: nn.Module) -> tuple[tuple[str, str], ...]:
    first = {module: name for name, module in model.named_modules()}
    return tuple(
        (name, first[module])
        for name, module in model.named_modules(remove_duplicate=False)
        if name != first[module]
    )


def _locked(
    model: nn.Module,
    graph: fx.Graph,
    observed: Observation | None,
    leaf_types: tuple[type[nn.Module], ...],
) -> dict[str, str]:
    """Return the convolutions that must not change, and why: other code uses their parameters.

    A convolution inside a declared leaf is exempt: the adapter that declared it knows its use.
    """
    exempt = tuple(f"{n}." for n, m in model.named_modules() if isinstance(m, leaf_types))
    convs = {n: m for n, m in model.named_modules() if isinstance(m, ConvTypes)}
    imaginary = {n for n, m in convs.items() if any(p.is_complex() for p in m.parameters())}
    locked = dict.fromkeys(imaginary, "its weights are complex numbers")
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    for names in owners.values():
        for name in names:
            if len(names) > 1 and name in convs:
                other = next(n for n in names if n != name) or "the model itself"
                locked[name] = f"it shares a parameter with {other}"
    for node in graph.nodes:
        owner, _, attribute = str(node.target).rpartition(".")
        if node.op == "get_attr" and (
            owner in convs or owner.split(".parametrizations")[0] in convs
        ):
            owner = owner.split(".parametrizations")[0]
            locked.setdefault(owner, f"its {attribute} is read outside the convolution itself")
    for name, attribute in (observed.reads if observed else {}).items():
        if not name.startswith(exempt):
            locked.setdefault(name, f"its {attribute} is read outside the convolution itself")
    for name, extra in (observed.extra if observed else {}).items():
        locked.setdefault(name, f"it is called with {extra}, which plain layers do not take")
    return locked


def _site(
    name: str,
    conv: row.Convolution,
    observed: Observation | None,
    around: Any,
    locked: str | None,
    *,
    doubled: bool,
) -> Site:
    upsample, noise, batchnorm, absorbs = around
    calls = observed.calls.get(name, 0) if observed else None
    out = row.shape_as_2d(observed.outputs.get(name)) if observed else None
    inp = row.shape_as_2d(observed.inputs.get(name)) if observed else None
    transposed = isinstance(conv, row.TransposedTypes)
    kh, kw = row.pair(conv.kernel_size, fill=1)
    macs = None
    if calls is not None:
        spot = conv.in_channels * conv.out_channels // conv.groups * kh * kw
        grid = inp if transposed else out
        macs = calls * spot * grid[-1] * grid[-2] if grid is not None else 0
    return Site(
        name=name,
        kind="transposed" if transposed else "conv",
        dims=1 if isinstance(conv, row.Conv1dTypes) else 2,
        in_channels=conv.in_channels,
        out_channels=conv.out_channels,
        kernel_size=(kh, kw),
        stride=row.pair(conv.stride, fill=1),
        padding=(conv.padding if isinstance(conv.padding, str) else row.pair(conv.padding, fill=0)),
        dilation=row.pair(conv.dilation, fill=1),
        output_padding=row.pair(conv.output_padding, fill=0),
        groups=conv.groups,
        padding_mode=conv.padding_mode,
        bias=conv.bias is not None,
        norm=norm_kind(conv),
        calls=calls,
        input_shape=inp,
        output_shape=out,
        upsample=upsample,
        doubled=doubled,
        noise=noise,
        batchnorm=batchnorm,
        absorbs_scale=absorbs,
        custom=own_forward(conv),
        locked=locked,
        # Spectral norm stores one kernel; weight norm adds a gain per slice, not counted here.
        params=conv.in_channels * conv.out_channels // conv.groups * kh * kw
        + (conv.out_channels if conv.bias is not None else 0),
        macs=macs,
    )


def find_sites(
    model: nn.Module,
    *,
    example_inputs: Sequence[Any] | None = None,
    leaves: Sequence[str] = (),
    leaf_types: tuple[type[nn.Module], ...] = (),
    noise_types: tuple[type[nn.Module], ...] = (),
    norm_types: tuple[type[nn.Module], ...] = (),
    unused: Sequence[str] = (),
    owned: bool = False,
) -> tuple[Sites, TracedGraph]:
    """Find the convolution sites of ``model``, and record its graph.

    Args:
        model: any module with convolutions; left as it was.
        example_inputs: positional arguments of one forward call, batch 1 (or N). Without them
            shapes, MACs and dead modules stay unknown.
        leaves: names of modules that torch.fx must not look into.
        leaf_types: the same, by class (an adapter's).
        noise_types: modules that only add noise to their input.
        norm_types: batch normalisations other than ``nn.BatchNorm2d``.
        unused: modules that never run, according to an adapter.
        owned: the model's ``forward`` writes into no parameter.

    Raises:
        TraceError: the model's own ``forward`` can't be traced, a named leaf does not exist, or
            the model fails on its example inputs.
    """
    check_leaves(model, leaves)
    leaf_types = (*leaf_types, *noise_types, *norm_types)
    examples = None if example_inputs is None else as_args(example_inputs)
    # First, so that a model which fails on its inputs gets that message and not one of the trace.
    observed = observe(model, examples, owned=owned) if examples is not None else None
    traced = trace_graph(
        model, examples=examples, leaf_types=leaf_types, leaf_names=frozenset(leaves)
    )
    graph, opaque = traced.graph, traced.opaque
    by_position(graph, model)
    around = _Surroundings(model, graph, noise_types, norm_types)
    locked = _locked(model, graph, observed, leaf_types)
    convolutions = tuple(
        _site(
            name,
            module,
            observed,
            around.look(name),
            locked.get(name),
            doubled=around.doubled(name),
        )
        for name, module in model.named_modules()
        if isinstance(module, ConvTypes)
    )
    if observed is not None:
        live = {s.name for s in convolutions if s.calls}
        order = [n for n in observed.calls if n in live]
    else:
        live = {s.name for s in convolutions}
        order = [str(n.target) for n in graph.nodes if n.op == "call_module" and n.target in live]
    found = Sites(
        model=type(model).__name__,
        convolutions=convolutions,
        order=tuple(dict.fromkeys(order)),
        dead=tuple(_dead(model, observed, graph, opaque)) if observed else (),
        leaves=tuple(opaque),
        shapes_known=observed is not None,
        note=None if observed else "no example inputs were given, so nothing was run",
        modules=tuple(n for n, _ in model.named_modules() if n),
        aliases=_aliases(model),
        unused=tuple(unused),
    )
    return found, traced
