"""The content of a pickle as inert data: nothing here can be called, hashed by value or run.

Scalars (None, bool, int, float, str, short bytes), tuples and lists stand for themselves; the
classes below stand for everything else. Nodes are compared by identity only, so that shared and
cyclic structures survive and no foreign key is ever hashed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

Node = Any
"""One of the classes below, or None, bool, int, float, str, bytes, tuple, list."""


def clean(text: str, limit: int = 80) -> str:
    """Return a foreign name for a message: short, and without control characters."""
    if len(text) <= limit and text.isprintable():
        return text
    short = text if len(text) <= limit else text[:limit] + "..."
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in short)


class Global:
    """A reference ``module.name``; never imported."""

    __slots__ = ("module", "name")

    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.name = name

    @property
    def key(self) -> tuple[str, str]:
        """The pair that allow-lists are keyed by."""
        return self.module, self.name

    def __str__(self) -> str:
        return clean(f"{self.module}.{self.name}", 160)


class Record:
    """An object that the pickle asks for: ``call`` is ``func(*args)``, ``new`` is ``__new__``.

    ``ops`` are the operations that follow on it, in order: ``("append", [items])``,
    ``("setitems", [pairs])``, ``("additems", [items])`` and ``("build", state)``.
    """

    __slots__ = ("args", "func", "kind", "kwargs", "ops")

    def __init__(
        self,
        kind: Literal["call", "new"],
        func: Node,
        args: tuple[Node, ...],
        kwargs: DictNode | None = None,
    ) -> None:
        self.kind = kind
        self.func = func
        self.args = args
        self.kwargs = kwargs
        self.ops: list[tuple[str, Any]] = []

    def extend(self, op: str, items: list[Any]) -> None:
        """Add items by ``op``, merged with the operation before where that is the same one."""
        if self.ops and self.ops[-1][0] == op:
            self.ops[-1][1].extend(items)
        else:
            self.ops.append((op, list(items)))


class DictNode:
    """A dict as the list of pairs it was filled with; a later pair wins, as in a dict."""

    __slots__ = ("items",)

    def __init__(self, items: list[tuple[Node, Node]] | None = None) -> None:
        self.items: list[tuple[Node, Node]] = items if items is not None else []


class SetNode:
    """A set or frozenset as a list."""

    __slots__ = ("frozen", "items")

    def __init__(self, items: list[Node] | None = None, *, frozen: bool = False) -> None:
        self.items: list[Node] = items if items is not None else []
        self.frozen = frozen


class Blob:
    """A byte string that stays in the file: only where it is and how long."""

    __slots__ = ("length", "mutable", "offset")

    def __init__(self, offset: int, length: int, *, mutable: bool = False) -> None:
        self.offset = offset
        self.length = length
        self.mutable = mutable


class Persistent:
    """A persistent id; only nested tensor storages may hold one."""

    __slots__ = ("value",)

    def __init__(self, value: Node) -> None:
        self.value = value


class TensorData:
    """A live tensor whose bytes the writer puts in place of a `Blob`."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def tuple_of(node: Node) -> tuple[Node, ...] | None:
    """Return ``node`` if it is a tuple."""
    return cast("tuple[Node, ...]", node) if type(node) is tuple else None


def list_of(node: Node) -> list[Node] | None:
    """Return ``node`` if it is a list."""
    return cast("list[Node]", node) if type(node) is list else None


def _label(key: Node) -> str:
    return clean(key) if type(key) is str else f"[{type(key).__name__}]"


def children(node: Node) -> Iterator[tuple[str, Node]]:
    """Yield the nodes directly below ``node``, each with a short label for error messages."""
    kind = cast("Any", type(node))
    if kind is tuple or kind is list:
        for index, item in enumerate(node):
            yield f"[{index}]", item
    elif kind is DictNode:
        for key, value in node.items:
            yield "<key>", key
            yield _label(key), value
    elif kind is SetNode:
        for item in node.items:
            yield "<item>", item
    elif kind is Persistent:
        yield "<id>", node.value
    elif kind is Record:
        yield "", node.func
        yield "<arguments>", node.args
        yield "<arguments>", node.kwargs
        for op, value in node.ops:
            if op == "setitems":
                for key, item in value:
                    yield "<key>", key
                    yield _label(key), item
            elif op == "build":
                yield "", value
            else:
                for item in value:
                    yield "<item>", item


def is_leaf(node: Node) -> bool:
    """Return whether ``node`` can't have anything below it (so that walks need not remember it)."""
    return node is None or type(node) in (bool, int, float, str, bytes, Blob, TensorData)


def dict_pairs(node: Node) -> list[tuple[Node, Node]] | None:
    """Return the pairs of a dict or an OrderedDict; None for anything else.

    Another object may have items of its own, which are not what the pickle has put into it: those
    of a ``ModuleDict`` are its modules.
    """
    if isinstance(node, DictNode):
        return node.items
    if not isinstance(node, Record) or node.kind != "call":
        return None
    func = node.func
    if not isinstance(func, Global) or func.key != ("collections", "OrderedDict"):
        return None
    pairs: list[tuple[Node, Node]] = []
    if node.args:
        first = list_of(node.args[0])
        for item in first if first is not None else (None,):
            pair = tuple_of(item) or list_of(item)
            if pair is None or len(pair) != 2:
                return None
            pairs.append((pair[0], pair[1]))
    for op, value in node.ops:
        if op == "setitems":
            pairs.extend(value)
    return pairs
