"""A torch.fx tracer for forward methods as real generators have them.

torch.fx records operations, not values. Arguments that are no tensors are bound before the trace:
defaults and given values of any type. A branch on a shape, a device or another fact of a tensor is
decided by a :class:`~dsconvert.model.shadow.Shadow` of the operations recorded so far. Only a
branch on the data of a tensor can't be decided.
"""

from __future__ import annotations

import inspect
import operator
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.proxy import Attribute

from dsconvert.errors import TraceError
from dsconvert.model.copying import isolated_copy
from dsconvert.model.factories import RecordedDraws, recorded_factories
from dsconvert.model.inputs import map_tensors, tensors_of
from dsconvert.model.one_dimensional import ConvTypes
from dsconvert.model.shadow import UNKNOWN, Shadow
from dsconvert.util.module_protocols import normalises_weight


class _Concrete:
    """A proxy that may be used as a number where its shadow is one."""

    tracer: Any

    def __len__(self) -> int:
        return self.tracer.number(self, len)

    def __int__(self) -> int:
        return self.tracer.number(self, int)

    def __index__(self) -> int:
        return self.tracer.number(self, int)

    def __float__(self) -> float:
        return self.tracer.number(self, float)


class _ConcreteAttribute(_Concrete, Attribute):
    """``x.shape``, ``x.is_cuda``."""


class _ConcreteProxy(_Concrete, fx.Proxy):
    """A recorded value."""

    def __getattr__(self, k: str) -> Any:
        return _ConcreteAttribute(self, k)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})


def _whole_functions() -> tuple[Any, ...]:
    """Functions that torch.fx must record as they are: einops looks at the type of its tensors."""
    einops = sys.modules.get("einops")
    names = ("rearrange", "reduce", "repeat", "einsum", "pack", "unpack")
    return tuple(f for n in names if (f := getattr(einops, n, None)) is not None)


class Tracer(fx.Tracer):
    """torch.fx tracer with bound arguments, shadows, and leaves found by itself.

    A module without convolutions that can't be traced becomes a leaf: nothing inside would be
    rewritten. The official ``GLU`` (asserts on a shape) and ``NoiseInjection`` (draws a tensor of
    a traced shape) are such modules; a user need not know.
    """

    def __init__(
        self,
        examples: tuple[Any, ...] | None,
        leaf_types: tuple[type[nn.Module], ...],
        leaf_names: frozenset[str],
    ) -> None:
        super().__init__(autowrap_functions=_whole_functions())
        self._examples = examples
        self._leaf_types, self._leaf_names = leaf_types, leaf_names
        self._shadows: tuple[Shadow, ...] | None = None
        self._inside: list[nn.Module] = []
        self._cache: dict[str, Any] = {}
        self._source: nn.Module | None = None
        self.shadowing = False
        self.opaque: dict[str, str] = {}

    def run(self, model: nn.Module) -> fx.Graph:
        """The graph of ``model``, which is changed by it (see :func:`trace_graph`)."""
        # Before the trace puts anything on the model: operators of the shadow run on this one.
        self._source = isolated_copy(model, share_parameters=True)
        for module in model.modules():
            # `conv.forward(x)` is a call of the convolution, too.
            if isinstance(module, ConvTypes):
                module.__dict__["forward"] = self._caller(module, module.forward)
        with (
            RecordedDraws(self._recorded, lambda: self.shadowing),
            recorded_factories(self._recorded),
        ):
            return self.trace(model)

    def _recorded(self, function: Any, args: Any, kwargs: Any) -> fx.Proxy:
        return self.create_proxy("call_function", function, args, kwargs)

    def _caller(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            return forward(*args, **kwargs) if self.shadowing else module(*args, **kwargs)

        return call

    # What goes in.

    def create_args_for_root(
        self,
        root_fn: Any,  # noqa: ARG002 (torch.fx's signature)
        is_module: bool,  # noqa: ARG002
        concrete_args: Any = None,  # noqa: ARG002
    ) -> tuple[Any, list[Any]]:
        """Placeholders for the tensors; everything else is bound."""
        root: Any = self.root
        args, kwargs = self._bound(inspect.signature(root.forward))
        return (lambda: root.forward(*args, **kwargs)), []

    def _bound(self, signature: inspect.Signature) -> tuple[list[Any], dict[str, Any]]:
        given = list(self._examples or ())
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for p in signature.parameters.values():
            if p.kind is p.VAR_POSITIONAL:
                args += [self._placed(v, f"{p.name}_{i}") for i, v in enumerate(given)]
                given = []
            elif p.kind is p.KEYWORD_ONLY:
                if p.default is p.empty:
                    kwargs[p.name] = self._placeholder(p.name)
            elif p.kind is not p.VAR_KEYWORD:
                if given:
                    args.append(self._placed(given.pop(0), p.name))
                else:
                    empty = p.default is p.empty
                    args.append(self._placeholder(p.name) if empty else p.default)
        if given:
            raise TraceError(f"forward takes {len(args)} arguments, {len(given)} more are given")
        return args, kwargs

    def _placed(self, value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            return self._placeholder(name)
        numbers = iter(range(1 << 30))
        return map_tensors(lambda _: self._placeholder(f"{name}_{next(numbers)}"), value)

    def _placeholder(self, name: str) -> fx.Proxy:
        return self.create_proxy("placeholder", name, (), {})

    # What is looked into.

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Convolutions, layers that normalise their own kernel, declared leaves, torch's own."""
        if isinstance(m, ConvTypes) or normalises_weight(m):
            return True
        if isinstance(m, self._leaf_types) or module_qualified_name in self._leaf_names:
            self.opaque.setdefault(module_qualified_name, "declared a leaf")
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Look into ``m``; where that fails, and there is nothing to find in it, make it a leaf."""
        if self.shadowing or self._passing(m):
            return forward(*args, **kwargs)
        if self.is_leaf_module(m, self.path_of_module(m)):
            return super().call_module(m, forward, args, kwargs)
        known = len(self.graph.nodes)
        stack = dict(self.module_stack)
        before = [(each, dict(vars(each))) for each in m.modules()]
        self._inside.append(m)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception as error:
            self._forget(known)
            for module, attributes in before:
                module.__dict__.clear()
                module.__dict__.update(attributes)
            # torch.fx pops this stack only on success.
            self.module_stack.clear()
            self.module_stack.update(stack)
            path = self.path_of_module(m)
            text = str(error).strip()
            self.opaque[path] = f"{type(error).__name__}: {text}".splitlines()[0]
            return self.create_proxy("call_module", path, args, kwargs)
        finally:
            self._inside.pop()

    def _passing(self, m: nn.Module) -> bool:
        """Whether ``m`` was made in ``forward`` around the model's own children: ``net[:3](x)``."""
        own = set(self.root.modules())
        return m not in own and next(m.children(), None) is not None and own >= {*m.children()}

    def _forget(self, known: int) -> None:
        """Take out what a failed attempt left behind, the last node first."""
        gone = list(self.graph.nodes)[known:]
        for node in reversed(gone):
            self.graph.erase_node(node)
        for name, proxy in list(self._cache.items()):
            if proxy.node in gone:
                del self._cache[name]

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Parameters are proxies, but for a shadow."""
        if self.shadowing:
            return attr_val
        self._cache = parameter_proxy_cache
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    # What a branch asks for.

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A proxy that knows its shadow."""
        return _ConcreteProxy(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """What a branch sees: the shadow's value, for the shapes of the example inputs."""
        if not self._may_branch():
            return super().to_bool(obj)
        return self._asked(obj, bool)[0]

    def number(self, obj: Any, kind: Callable[[Any], Any]) -> Any:
        """A number made from shapes; one that depends on the batch size is none.

        Raises:
            TypeError: as Python says of what is no number.
        """
        if not self._may_branch():
            raise TypeError(f"'{kind.__name__}' of a value that is only known when the model runs")
        first, *others = self._asked(obj, kind)
        if any(value != first for value in others):
            raise TypeError("a number that depends on the batch size")
        return first

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """Unpack by ``*`` and in loops, where the shadow has a length."""
        if not self._may_branch():
            return super().iter(obj)
        unpacked: Any = obj
        return iter([unpacked[i] for i in range(self.number(obj, len))])

    def _may_branch(self) -> bool:
        if self._examples is None:
            return False
        # A module without convolutions is left whole instead: a branch in it stays a branch.
        within = self._inside[-1] if self._inside else None
        return within is None or any(isinstance(m, ConvTypes) for m in within.modules())

    def _asked(self, obj: fx.Proxy, kind: Callable[[Any], Any]) -> list[Any]:
        if self._shadows is None:
            assert self._source is not None
            tensors = tensors_of(self._examples)
            with self._quietly():
                self._shadows = tuple(Shadow(self._source, tensors, grow) for grow in (0, 1))
        found: list[Any] = []
        for shadow in self._shadows:
            with self._quietly():
                value = shadow.value(self.graph, obj.node)
            whole = isinstance(value, Tensor) and kind is not len
            if value is UNKNOWN or whole:
                if found and value is UNKNOWN:
                    continue  # another batch size does not run: nothing to compare with
                raise TraceError("a branch depends on the values of a tensor")
            found.append(kind(value))
        return found

    @contextmanager
    def _quietly(self) -> Generator[None, None, None]:
        self.shadowing, was = True, self.shadowing
        try:
            yield
        finally:
            self.shadowing = was
