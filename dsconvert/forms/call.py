"""Describe the call of a generator: its tensor arguments, and the values of the others.

``forward`` may take tensors in lists or beside numbers, flags and defaults. A flat graph takes
tensors only, each under its own name; the other values are constants of the graph.
"""

from __future__ import annotations

import inspect
import keyword
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dsconvert.errors import UsageError

Path = tuple[str | int, ...]
"""The position of a tensor: the parameter of ``forward``, then indices and keys."""

_PLAIN = (bool, int, float, str, type(None))
_MISSING = object()


@dataclass(frozen=True, kw_only=True)
class Call:
    """The arguments of ``forward`` and the tensors among those of one call.

    Attributes:
        positional: parameters that may be given by position, in order.
        keywords: those that must be given by name.
        star: the name behind ``*``, if there is one.
        loose: whether ``forward`` takes any keyword.
        tensors: names of the tensors, in the order of the call, with the position of each.
        batched: names of the tensors whose first dimension is the batch.
        built_in: parameters that are no tensors, with the plain values that they keep.
    """

    positional: tuple[str, ...]
    keywords: tuple[str, ...] = ()
    star: str | None = None
    loose: bool = False
    tensors: Mapping[str, Path]
    batched: frozenset[str]
    built_in: Mapping[str, Any]

    def given(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the values of a call by the names of the parameters.

        Raises:
            TypeError: ``forward`` has no such parameter, or gets one twice.
            UsageError: a value that is built in is given as another.
        """
        found = dict(zip(self.positional, args, strict=False))
        rest = args[len(self.positional) :]
        if self.star is not None:
            found[self.star] = rest
        elif rest:
            raise TypeError(f"takes {', '.join(self.positional)}, not {len(args)} arguments")
        for name, value in kwargs.items():
            if name in found:
                raise TypeError(f"got two values for the argument {name}")
            if name in self.positional or name in self.keywords:
                found[name] = value
            elif not self.loose:
                raise TypeError(
                    f"takes {', '.join((*self.positional, *self.keywords))}, not {name}"
                )
        for name, value in found.items():
            kept = self.built_in.get(name, _MISSING)
            if kept is not _MISSING and not _equal(value, kept):
                remedy = (
                    "with inputs that give that."
                    if name in self.positional
                    # ``inputs`` gives arguments by position.
                    else "of a module whose forward calls the model with that, "
                    f"model(..., {name}=...)."
                )
                raise UsageError(
                    f"the argument {name} has the value {kept!r} built in and can't be "
                    f"{_shown(value)}: make this form anew, {remedy}"
                )
        return found

    def select(self, found: Mapping[str, Any], names: tuple[str, ...]) -> list[Tensor]:
        """Return the tensors of these names in the result of :meth:`given`.

        Raises:
            TypeError: one is missing.
        """
        return [_at(found, self.tensors[name], name) for name in names]


def _at(found: Mapping[str, Any], path: Path, name: str) -> Tensor:
    value: Any = found
    for key in path:
        try:
            value = value[key]
        except (LookupError, TypeError):
            raise TypeError(f"the argument {name} is missing") from None
    if not isinstance(value, Tensor):
        raise TypeError(f"the argument {name} is a {type(value).__name__}, not a tensor")
    return value


def _shown(value: Any) -> str:
    return repr(value)[:80] if isinstance(value, _PLAIN) else f"a {type(value).__name__}"


def _equal(a: Any, b: Any) -> bool:
    return isinstance(a, _PLAIN) and (a is b or (isinstance(b, int | float | str) and a == b))


def call_of(
    model: nn.Module, examples: tuple[Any, ...], other: tuple[Any, ...] | None = None
) -> Call:
    """Describe the call of ``model`` with ``examples``.

    Args:
        model: only looked at.
        examples: positional arguments of one call.
        other: those of a call with another batch size: tensors whose first dimension does not
            follow it are no batches. None: all tensors with a dimension are.

    Raises:
        UsageError: ``forward`` does not take these arguments, or none of them is a tensor.
    """
    name = type(model).__name__
    try:
        signature = inspect.signature(model.forward)
        bound = signature.bind(*examples)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"{name}.forward does not take the {len(examples)} arguments that inputs gives: "
            f"{error}. Give those of one call, by position."
        ) from error
    parameters = signature.parameters.values()
    paths = _paths(bound)
    if not paths:
        raise UsageError(f"no argument of {name} in what inputs gives is a tensor; give one.")
    sizes = (
        {}
        if other is None
        else {k: len(t) if t.dim() else 0 for k, t in _paths(signature.bind(*other)).items()}
    )
    tensors: dict[str, Path] = {}
    for path in paths:
        tensors[_name(path, tensors)] = path
    bound.apply_defaults()
    return Call(
        positional=tuple(
            p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ),
        keywords=tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY),
        star=next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), None),
        loose=any(p.kind is p.VAR_KEYWORD for p in parameters),
        tensors=tensors,
        batched=frozenset(
            k
            for k, path in tensors.items()
            if paths[path].dim() and len(paths[path]) != sizes.get(path)
        ),
        built_in={k: v for k, v in bound.arguments.items() if isinstance(v, _PLAIN)},
    )


def _paths(bound: inspect.BoundArguments) -> dict[Path, Tensor]:
    return {path: t for k, v in bound.arguments.items() for path, t in _tensors(v, (k,))}


def _tensors(value: Any, path: Path) -> Iterator[tuple[Path, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            if isinstance(key, str | int):
                yield from _tensors(each, (*path, key))
    elif isinstance(value, list | tuple):
        for i, each in enumerate(value):
            yield from _tensors(each, (*path, i))


def _name(path: Path, taken: Mapping[str, Path]) -> str:
    """Return an identifier that is not taken."""
    name = re.sub(r"\W", "_", "_".join(str(key) for key in path))
    while name in taken or name == "self" or keyword.iskeyword(name):
        name += "_"
    return name
