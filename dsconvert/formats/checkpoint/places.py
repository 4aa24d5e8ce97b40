"""The place of a state dict in a file, and the names that wrappers have given its tensors.

``DataParallel`` puts ``module.`` before every name, ``torch.compile`` puts ``_orig_mod.`` before
those of compiled modules, Lightning saves all networks in one state dict with their attributes'
names as prefixes, an averaged model adds a counter, ema-pytorch keeps ``ema_model.`` and
``online_model.`` together. A :class:`Place` reads plain names out of such a mapping and writes a
state dict, also one with other modules in it, back in the mapping's own spelling.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

State = Mapping[str, torch.Tensor]
ROOT = "state_dict"
"""Where a bare state dict is put when something has to stand beside it."""
_COMPILED = "_orig_mod"
_PARALLEL = "module"
_COUNTERS = frozenset({"n_averaged", "initted", "step", "num_updates"})
"""Counters that averages keep beside the weights."""
_AVERAGED = ("ema", "averag", "shadow")
_PREFIX_DEPTH = 3
_PATH_DEPTH = 3


@dataclass(frozen=True, kw_only=True)
class Place:
    """A state dict in a file.

    Attributes:
        path: names of the entries that lead to the mapping; empty: the file's whole content.
        prefix: the common beginning of its names in that mapping, without the dot.
        names: plain name to name in the mapping.
    """

    path: tuple[str, ...]
    prefix: str
    names: Mapping[str, str]

    @property
    def key(self) -> str:
        """Path and prefix, joined by dots: a value of ``--key``."""
        return ".".join((*self.path, *([self.prefix] if self.prefix else [])))

    def state(self, content: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Return the state dict, under plain names."""
        mapping = _at(content, self.path)
        return {plain: mapping[name] for plain, name in self.names.items()}

    def put(self, content: Mapping[str, Any], state: State) -> dict[str, Any]:
        """Return ``content`` with ``state`` (plain names) in place of this state dict.

        Everything else in the mapping stays; new modules are spelled like those around them.
        """
        mapping, old = _at(content, self.path), set(self.names.values())
        spelled = self._spelled(state)
        made: dict[str, Any] = {}
        for name, value in mapping.items():
            if name not in old:
                made[name] = value
            elif spelled:
                made |= spelled
                spelled = {}
        return _with(content, self.path, made)

    def _spelled(self, state: State) -> dict[str, torch.Tensor]:
        modules: dict[tuple[str, ...], tuple[str, ...]] = {}
        for plain, name in self.names.items():
            mine, theirs = plain.split(".")[:-1], name.split(".")[:-1]
            modules[tuple(mine)] = tuple(theirs)
            while mine:
                while theirs[-1] != mine[-1]:  # a wrapper's own name
                    theirs.pop()
                mine.pop()
                theirs.pop()
                # With the wrapper's name behind a module's, where there is one.
                modules.setdefault(tuple(mine), tuple(theirs))
        made: dict[str, torch.Tensor] = {}
        for plain, value in state.items():
            parts = plain.split(".")
            known = next(n for n in range(len(parts) - 1, -1, -1) if tuple(parts[:n]) in modules)
            made[".".join((*modules[tuple(parts[:known])], *parts[known:]))] = value
        return made


def elements(state: State) -> int:
    """Return the number of elements of all tensors."""
    return sum(t.numel() for t in state.values())


def _at(content: Mapping[str, Any], path: tuple[str, ...]) -> Mapping[str, Any]:
    for name in path:
        content = content[name]
    return content


def _with(content: Mapping[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    if not path:
        return value
    return {**content, path[0]: _with(content[path[0]], path[1:], value)}


def _tensors(mapping: Mapping[Any, Any]) -> list[str]:
    return [k for k, v in mapping.items() if isinstance(k, str) and isinstance(v, torch.Tensor)]


def _plain(names: list[str]) -> list[str]:
    """Return names without the parts that ``torch.compile`` and ``DataParallel`` add."""
    parts = [[p for p in n.split(".") if p != _COMPILED] for n in names]
    while all(len(p) > 1 and p[0] == _PARALLEL for p in parts):
        parts = [p[1:] for p in parts]
    return [".".join(p) for p in parts]


def _spellings(path: tuple[str, ...], prefix: str, names: list[str]) -> Iterator[Place]:
    """Yield the names as they are, then without wrappers' parts."""
    start = len(prefix) + 1 if prefix else 0
    bare = [n[start:] for n in names]
    variants = [bare]
    if names and (plain := _plain(bare)) != bare:
        variants.append(plain)
    for variant in variants:
        if len(set(variant)) == len(names) and all(variant):
            yield Place(path=path, prefix=prefix, names=dict(zip(variant, names, strict=True)))


def _within(mapping: Mapping[Any, Any], path: tuple[str, ...]) -> Iterator[Place]:
    """Yield every state dict that a mapping may hold: all of it, then by prefix, averages first."""
    names = _tensors(mapping)
    heads: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".")
        for depth in range(1, min(_PREFIX_DEPTH, len(parts) - 1) + 1):
            if parts[depth - 1].isdigit():
                break  # a part of a Sequential, nothing that a wrapper is called
            heads.setdefault(".".join(parts[:depth]), []).append(name)
    if names:
        yield from _spellings(path, "", names)
    averaged = [h for h in heads if any(a in h.lower() for a in _AVERAGED)]
    for head in dict.fromkeys((*averaged, *heads)):
        yield from _spellings(path, head, heads[head])


def mappings(
    content: Mapping[Any, Any], first: tuple[str, ...] = (), path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    """Yield every mapping of names in a file, breadth first; those named in ``first`` go first."""
    level = [(path, content)]
    for left in reversed(range(_PATH_DEPTH)):
        below: list[tuple[tuple[str, ...], Mapping[Any, Any]]] = []
        for where, mapping in level:
            yield where, mapping
            if not left:
                continue  # nobody asks for what is below the last level
            order = dict.fromkeys((*(n for n in first if n in mapping), *mapping))
            below += [
                ((*where, k), mapping[k])
                for k in order
                if isinstance(k, str) and isinstance(mapping[k], Mapping)
            ]
        level = below


def places(content: Mapping[str, Any], first: tuple[str, ...] = ()) -> Iterator[Place]:
    """Yield every possible place of a state dict, likely ones first."""
    for path, mapping in mappings(content, first):
        yield from _within(mapping, path)


def alike(content: Mapping[str, Any], place: Place) -> Iterator[Place]:
    """Yield the other places in the same mapping that share no tensor with ``place``."""
    taken = set(place.names.values())
    for other in _within(_at(content, place.path), place.path):
        if not taken & set(other.names.values()):
            yield other


def named(content: Mapping[str, Any], key: str) -> list[Place]:
    """Return the state dict of ``key`` (entries and a prefix, joined by dots), each spelling."""
    for path, mapping in mappings(content):
        entry = ".".join(path)
        if entry and key != entry and not key.startswith(f"{entry}."):
            continue
        prefix = key[len(entry) :].strip(".") if entry else key
        if names := [n for n in _tensors(mapping) if not prefix or n.startswith(f"{prefix}.")]:
            return list(_spellings(path, prefix, names))
    return []


def tidied(content: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[Place, ...]]:
    """Return ``content`` without wrappers' names in its state dicts, and the changed places."""
    made: dict[str, Any] = dict(content)
    done: list[Place] = []
    for path, mapping in list(mappings(content)):
        names = [n for n in _tensors(mapping) if n not in _COUNTERS]
        if not path or len(names) < 2 or set(mapping) - set(names) - _COUNTERS:
            continue
        spelled = list(_spellings(path, "", names))[1:]
        if spelled:
            made = _with(made, path, spelled[0].state(content))
            done.append(spelled[0])
    return made, tuple(done)


def untidied(
    content: Mapping[str, Any], original: Mapping[str, Any], where: tuple[Place, ...]
) -> dict[str, Any]:
    """Return a changed ``content`` with the names that :func:`tidied` has taken off."""
    made = dict(content)
    for place in where:
        try:
            state = _at(made, place.path)
        except (KeyError, TypeError):
            continue  # the codebase does not write this entry back
        made = _with(made, place.path, _at(place.put(original, state), place.path))
    return made
