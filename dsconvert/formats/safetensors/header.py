"""The header of a safetensors export: JSON that says how to build the generator.

It holds the name of the adapter, the facts that the adapter builds the original from, and the
changes of a conversion: a recipe of :mod:`dsconvert.formats.restructure`. Nothing in the file is
ever executed.
"""

from __future__ import annotations

from typing import Any

KEY = "dsconvert_generator"
"""The entry of the header's metadata."""
VERSIONS = (1, 2)
"""Versions that can be read; the last one is written. Version 1 spelled the changes otherwise."""


def upgraded(changes: Any) -> dict[str, Any]:
    """Return the changes of version 1 as a recipe.

    Raises:
        AttributeError, KeyError, TypeError, ValueError: they are malformed.
    """
    return {
        "replaced": {k: _spec(v, 0) for k, v in dict(changes["replace"]).items()},
        "removed": list(changes["remove"]),
        "eps": {},
        "attributes": dict(changes["attributes"]),
    }


def _spec(described: Any, depth: int) -> dict[str, Any]:
    if depth > 32:
        raise ValueError("nested too deeply")
    kind, children = described["type"], dict(described["children"])
    if children or kind in ("Sequential", "ModuleList", "ModuleDict"):
        return {"type": kind, "children": [[k, _spec(v, depth + 1)] for k, v in children.items()]}
    values = dict(described["attributes"])
    return {**values, "type": kind, "bias": "bias" in list(described["tensors"]), "norm": None}
