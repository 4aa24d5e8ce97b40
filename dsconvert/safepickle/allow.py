"""An allow-list: the names that a pickle may refer to, each in its role. The caller makes it.

Names are exact pairs of module and name. A name on the list still never runs *here*; the list
decides which objects may be read, and written back for another program to load.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from dsconvert.safepickle.nodes import Node, Record

Key = tuple[str, str]
"""Module and name of a global."""
Objection = tuple[str, str]
"""The name of a part that is refused, and the rest of a sentence about it."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """A callable that a pickle may name in a call.

    Attributes:
        check: whether the arguments are ones that honest files have.
        follow: operations that may follow the call (``setitems``, ``build``, ...).
        state: whether a state that is set on the result is honest; None: not checked by it.
        takes_classes: ``check`` also checks the globals among the arguments.
        makes_object: the result is an object with attributes, whose state is checked as such.
    """

    check: Callable[[tuple[Node, ...]], bool]
    follow: frozenset[str] = frozenset()
    state: Callable[[Node], bool] | None = None
    takes_classes: bool = False
    makes_object: bool = False


def _nothing(_: Record) -> Iterable[Objection]:
    return ()


@dataclass(frozen=True, kw_only=True)
class AllowList:
    """The names that a pickle may refer to.

    Attributes:
        classes: whether objects of a class may be made by ``__new__`` without arguments.
        calls: callables.
        data: names that may stand as plain data, neither called nor used as a class.
        hooks: classes of the only objects that may sit in a table whose name ends in ``_hooks``.
        attributes: names that no state may set, since they change how an object behaves; special
            names (``__x__``) are always among them.
        object_to: further objections to an object that the rest of the list allows.
    """

    classes: Callable[[Key], bool]
    calls: Mapping[Key, Call]
    data: frozenset[Key]
    hooks: frozenset[Key] = frozenset()
    attributes: frozenset[str] = frozenset()
    object_to: Callable[[Record], Iterable[Objection]] = _nothing

    def forbids_attribute(self, name: Node) -> bool:
        """Return whether state may not set this attribute."""
        if type(name) is not str:
            return True
        return (name.startswith("__") and name.endswith("__")) or name in self.attributes
