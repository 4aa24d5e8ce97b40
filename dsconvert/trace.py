"""Model -> Trace: the graph, the convolution sites with their shapes, and what is dead.

Two sources are combined. torch.fx says what feeds what (is there a nearest upsample right before
this convolution, a batch normalisation behind it?). One forward pass on example inputs, watched
through hooks, says which modules really run, how often, and at which shapes.
"""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from dsconvert.errors import TraceError
from dsconvert.norms import norm_kind
from dsconvert.observe import Watch, observe
from dsconvert.records import Site, Trace

ConvTypes = (nn.Conv2d, nn.ConvTranspose2d)


@dataclass(frozen=True, kw_only=True)
class Traced:
    """A :class:`~dsconvert.records.Trace` together with the live graph it was read from."""

    trace: Trace
    graph: fx.Graph


def _whole_functions() -> tuple[Any, ...]:
    """Functions that torch.fx must record as they are: einops looks at the type of its tensors."""
    einops = sys.modules.get("einops")
    names = ("rearrange", "reduce", "repeat", "einsum", "pack", "unpack")
    return tuple(f for n in names if (f := getattr(einops, n, None)) is not None)


class _Tracer(fx.Tracer):
    """torch.fx tracer that turns a module it can't look into into a leaf by itself.

    The official ``GLU`` (asserts on a shape) and ``NoiseInjection`` (draws a tensor of a traced
    shape) are such modules; a user need not know.
    """

    def __init__(self, leaf_types: tuple[type[nn.Module], ...], leaf_names: frozenset[str]) -> None:
        super().__init__(autowrap_functions=_whole_functions())
        self._leaf_types = leaf_types
        self._leaf_names = leaf_names
        self.opaque: dict[str, str] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, ConvTypes):
            return True
        if isinstance(m, self._leaf_types) or module_qualified_name in self._leaf_names:
            self.opaque.setdefault(module_qualified_name, "declared a leaf")
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        known = len(self.graph.nodes)
        stack = dict(self.module_stack)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception as error:
            # What the failed attempt left in the graph must go, last node first.
            for node in reversed(list(self.graph.nodes)[known:]):
                self.graph.erase_node(node)
            # torch.fx pops this stack only on success.
            self.module_stack.clear()
            self.module_stack.update(stack)
            path = self.path_of_module(m)
            self.opaque[path] = f"{type(error).__name__}: {error}".splitlines()[0]
            return self.create_proxy("call_module", path, args, kwargs)


def _defaults(model: nn.Module, given: int) -> dict[str, Any]:
    """Parameters of ``forward`` that keep their default value, so that branches on them fold."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    return {
        p.name: p.default
        for i, p in enumerate(parameters)
        if p.default is not inspect.Parameter.empty
        and (given == 0 or i >= given)
        and (p.default is None or isinstance(p.default, bool | int | float | str))
    }


def _graph(
    model: nn.Module,
    leaf_types: tuple[type[nn.Module], ...],
    leaf_names: frozenset[str],
    given: int,
) -> tuple[fx.Graph, dict[str, str]]:
    tracer = _Tracer(leaf_types, leaf_names)
    try:
        graph = tracer.trace(model, concrete_args=_defaults(model, given) or None)
    except Exception as error:
        frame = next(
            (
                f
                for f in reversed(traceback.extract_tb(error.__traceback__))
                if "/torch/" not in f.filename and not f.filename.endswith("trace.py")
            ),
            None,
        )
        where = f" at {frame.filename}:{frame.lineno} ({frame.line})" if frame else ""
        raise TraceError(
            f"{type(model).__name__}.forward can't be traced{where}: {error}. "
            "Move the data-dependent part into a child module (it then becomes a leaf by itself), "
            "or convert the child that holds the convolutions."
        ) from error
    _drop_defaults(graph)
    return graph, tracer.opaque


def _drop_defaults(graph: fx.Graph) -> None:
    """Take out the parameters that kept their defaults, and the checks that torch.fx puts there.

    What they decide is decided; as inputs they would only ask for values that nobody gives.
    """
    checks = ("_assert", "_assert_is_none")
    for node in list(graph.nodes):
        if node.op == "call_function" and getattr(node.target, "__name__", "") in checks:
            compared = node.args[0]
            graph.erase_node(node)
            if isinstance(compared, fx.Node) and compared.op == "call_function":
                given = compared.args[0]
                graph.erase_node(compared)
                compared = given
            if isinstance(compared, fx.Node) and not compared.users:
                graph.erase_node(compared)


def _dead(model: nn.Module, watch: Watch, graph: fx.Graph, opaque: dict[str, str]) -> list[str]:
    """Topmost modules with parameters of which nothing runs, and whose weights nobody reads."""
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
        if not any(ran == name or ran.startswith(f"{name}.") for ran in watch.calls):
            dead.append(name)
    return dead


def _nearest_x2(module: nn.Module | None) -> bool:
    return (
        isinstance(module, nn.Upsample)
        and module.mode == "nearest"
        and module.size is None
        and module.scale_factor in (2, 2.0, (2, 2), (2.0, 2.0))
    )


class _Surroundings:
    """What stands right before and right behind a convolution in the graph."""

    def __init__(
        self,
        model: nn.Module,
        graph: fx.Graph,
        noise_types: tuple[type[nn.Module], ...],
        norm_types: tuple[type[nn.Module], ...],
    ) -> None:
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self._noise = noise_types
        self._norms = (nn.BatchNorm2d, *norm_types)
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

    def look(self, name: str) -> tuple[str | None, str | None, str | None, bool]:
        """(upsample, noise, batchnorm, absorbs_scale) around the only call of ``name``."""
        nodes = self._nodes.get(name, [])
        if len(nodes) != 1 or not nodes[0].args:
            return None, None, None, False
        node = nodes[0]
        before = node.args[0]
        upsample = None
        if (
            isinstance(before, fx.Node)
            and _nearest_x2(self._module(before))
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


_COMPUTING = ("forward", "_conv_forward", "__call__")


def _pair(value: Any) -> tuple[int, int]:
    return (int(value[0]), int(value[1]))


def _custom(conv: nn.Conv2d | nn.ConvTranspose2d) -> str | None:
    """The class of a convolution with a ``forward`` of its own (timm's same-padding, say)."""
    plain = nn.ConvTranspose2d if isinstance(conv, nn.ConvTranspose2d) else nn.Conv2d
    # A parametrisation makes a class of its own too, but leaves these alone.
    kind: Any = type(conv)
    own = any(getattr(kind, n, None) is not getattr(plain, n, None) for n in _COMPUTING)
    return kind.__name__ if own or "forward" in vars(conv) else None


def _site(
    name: str, conv: nn.Conv2d | nn.ConvTranspose2d, watch: Watch | None, around: Any
) -> Site:
    upsample, noise, batchnorm, absorbs = around
    calls = watch.calls.get(name, 0) if watch else None
    out = watch.outputs.get(name) if watch else None
    inp = watch.inputs.get(name) if watch else None
    kh, kw = _pair(conv.kernel_size)
    macs = None
    if calls is not None:
        spot = conv.in_channels * conv.out_channels // conv.groups * kh * kw
        grid = inp if isinstance(conv, nn.ConvTranspose2d) else out
        macs = calls * spot * grid[-1] * grid[-2] if grid is not None else 0
    return Site(
        name=name,
        kind="transposed" if isinstance(conv, nn.ConvTranspose2d) else "conv",
        in_channels=conv.in_channels,
        out_channels=conv.out_channels,
        kernel_size=(kh, kw),
        stride=_pair(conv.stride),
        padding=conv.padding if isinstance(conv.padding, str) else _pair(conv.padding),
        dilation=_pair(conv.dilation),
        output_padding=_pair(conv.output_padding),
        groups=conv.groups,
        padding_mode=conv.padding_mode,
        bias=conv.bias is not None,
        norm=norm_kind(conv),
        calls=calls,
        input_shape=inp,
        output_shape=out,
        upsample=upsample,
        noise=noise,
        batchnorm=batchnorm,
        absorbs_scale=absorbs,
        custom=_custom(conv),
        # Spectral norm stores one kernel; weight norm adds a gain per slice, not counted here.
        params=conv.in_channels * conv.out_channels // conv.groups * kh * kw
        + (conv.out_channels if conv.bias is not None else 0),
        macs=macs,
    )


def trace(
    model: nn.Module,
    *,
    example_inputs: Sequence[Any] | None = None,
    leaves: Sequence[str] = (),
    leaf_types: tuple[type[nn.Module], ...] = (),
    noise_types: tuple[type[nn.Module], ...] = (),
    norm_types: tuple[type[nn.Module], ...] = (),
) -> Traced:
    """Find the convolution sites of ``model``.

    Args:
        model: any module with 2-D convolutions; left as it was.
        example_inputs: positional arguments of one forward call, batch 1 (or N). Without them
            shapes, MACs and dead modules stay unknown.
        leaves: names of modules that torch.fx must not look into.
        leaf_types: the same, by class (an adapter's).
        noise_types: modules that only add noise to their input.
        norm_types: batch normalisations other than ``nn.BatchNorm2d``.

    Raises:
        TraceError: the model's own ``forward`` can't be traced, a named leaf does not exist, or
            the model fails on its example inputs.
    """
    names = {n for n, _ in model.named_modules(remove_duplicate=False)}
    if unknown := sorted(set(leaves) - names):
        raise TraceError(f"no such module to keep as a leaf: {', '.join(unknown)}.")
    given = len(example_inputs) if example_inputs is not None else 0
    leaf_types = (*leaf_types, *noise_types, *norm_types)
    graph, opaque = _graph(model, leaf_types, frozenset(leaves), given)
    watch = observe(model, example_inputs) if example_inputs is not None else None
    around = _Surroundings(model, graph, noise_types, norm_types)
    sites = tuple(
        _site(name, module, watch, around.look(name))
        for name, module in model.named_modules()
        if isinstance(module, ConvTypes)
    )
    if watch is not None:
        live = {s.name for s in sites if s.calls}
        order = [n for n in watch.calls if n in live]
    else:
        live = {s.name for s in sites}
        order = [str(n.target) for n in graph.nodes if n.op == "call_module" and n.target in live]
    return Traced(
        trace=Trace(
            model=type(model).__name__,
            sites=sites,
            order=tuple(dict.fromkeys(order)),
            dead=tuple(_dead(model, watch, graph, opaque)) if watch else (),
            leaves=tuple(opaque),
            shapes_known=watch is not None,
            note=None if watch else "no example inputs were given, so nothing was run",
        ),
        graph=graph,
    )
