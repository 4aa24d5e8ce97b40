"""The tensors of a carried module by name, without building it.

A discriminator's classes (the official repository's, old timm's) are carried as records and never
made; a class of our own with the same names only needs its state dict.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsconvert.formats.official.build import MAX_MODULE_DEPTH
from dsconvert.formats.official.persistence import class_key

if TYPE_CHECKING:
    import torch

    from dsconvert.formats.official.parts import Parts
    from dsconvert.safepickle import Node


def state_of(parts: Parts, root: Node, where: str) -> dict[str, torch.Tensor]:
    """Return the tensors that ``state_dict()`` of the module ``root`` would hold.

    Raises:
        CorruptSnapshotError: a part of it is no module or no tensor.
    """
    found: dict[str, torch.Tensor] = {}
    stack: list[tuple[Node, str, int]] = [(root, "", 0)]
    while stack:
        node, prefix, depth = stack.pop()
        path = f"{where}.{prefix}".rstrip(".")
        if class_key(node) is None:
            raise parts.fail(path, "is no module")
        if depth > MAX_MODULE_DEPTH:
            raise parts.fail(path, "is nested too deep")
        state = parts.state(node, path)
        for table in ("_parameters", "_buffers"):
            for name, value in parts.mapping(state.get(table), path).items():
                if value is not None:
                    found[prefix + name] = parts.tensor(value, f"{path}.{name}").detach()
        children = parts.mapping(state.get("_modules"), path)
        for name, child in reversed(children.items()):
            if child is not None:
                stack.append((child, f"{prefix}{name}.", depth + 1))
    return found
