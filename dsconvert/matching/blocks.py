"""The blocks of a generator: their names, and their inputs and outputs during a call."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor, nn

from dsconvert.model.call_arguments import in_order
from dsconvert.model.graph import convolutional
from dsconvert.model.inputs import fresh_args, tensors_of
from dsconvert.model.one_dimensional import is_1d, map_as_2d

Args = tuple[Any, ...]
_T = TypeVar("_T")


def trunk_blocks(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the blocks that make the picture.

    Starting at the root, descend while a single child holds every convolution. The blocks are the
    children of the last module that hold convolutions.
    """
    prefix, here = "", model
    while True:
        inside = [(n, c) for n, c in _called_children(here) if convolutional(c)]
        if len(inside) != 1:
            return tuple(prefix + n for n, _ in inside)
        name, here = inside[0]
        prefix += f"{name}."


def _called_children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the children by name; of a list, which is never called itself, its members."""
    found: list[tuple[str, nn.Module]] = []
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList):
            found += [(f"{name}.{n}", c) for n, c in _called_children(child)]
        else:
            found.append((name, child))
    return found


@dataclass
class BlockRecorder:
    """Records the inputs and outputs of named children during a forward call.

    The model may write into a recorded tensor later in the call, as an activation in place does.
    Those tensors are copied before: :meth:`record` finds them by their versions.
    """

    model: nn.Module
    names: tuple[str, ...]
    inputs: dict[str, Args] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    replace: dict[str, Args] | None = None
    """Arguments that replace those of the children, which get copies of them."""
    _written: set[tuple[str, str]] = field(default_factory=set)
    """The kinds and names of the records that the model writes into."""
    _versions: dict[tuple[str, str], list[tuple[Tensor, int]]] = field(default_factory=dict)

    def record(self, call: Callable[[], _T]) -> _T:
        """Return ``call()``, a run of the model, recorded.

        It runs again if it wrote into a tensor that was recorded without a copy: once or twice in
        the life of a recorder.
        """
        known = len(self._written)
        with self.recording():
            result = call()
        return result if len(self._written) == known else self.record(call)

    @contextmanager
    def recording(self) -> Generator[None, None, None]:
        """Record within this context; the records stay until the next one."""
        self.inputs, self.outputs, self.calls = {}, {}, {}
        self._versions = {}
        handles: list[Any] = []
        for name in self.names:
            module = self.model.get_submodule(name)
            handles.append(module.register_forward_pre_hook(self._before(name), with_kwargs=True))
            handles.append(module.register_forward_hook(self._after(name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for record, tensors in self._versions.items():
                if any(t._version != version for t, version in tensors):
                    self._written.add(record)
            self._versions = {}

    def _kept(self, kind: str, name: str, value: _T) -> _T:
        if (kind, name) in self._written:
            return fresh_args(value)
        self._versions[kind, name] = [(t, t._version) for t in tensors_of(value)]
        return value

    def _before(self, name: str) -> Callable[[nn.Module, Args, Any], tuple[Args, Any] | None]:
        def hook(module: nn.Module, args: Args, named: Any) -> tuple[Args, Any] | None:
            args, named = in_order(module, args, named)
            if self.replace is not None and name in self.replace:
                return fresh_args(self.replace[name]), named
            self.inputs[name] = self._kept("input", name, args)
            return None

        return hook

    def _after(self, name: str) -> Callable[[nn.Module, Args, Any], None]:
        def hook(module: nn.Module, _args: Args, output: Any) -> None:
            self.calls[name] = self.calls.get(name, 0) + 1
            if isinstance(output, Tensor):
                # Maps of one dimension are compared as maps of height 1.
                output = self._kept("output", name, output)
                self.outputs[name] = map_as_2d(output) if is_1d(module) else output

        return hook
