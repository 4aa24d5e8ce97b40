"""The tensors of a carried module by name, without building it.

A discriminator's classes (the official repository's, old timm's) are carried as records and never
made; whoever has an own class of the same names only needs its state dict.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsconvert.formats.official.build import MAX_MODULE_DEPTH
from dsconvert.formats.official.persistence import class_key

if TYPE_CHECKING:
    import torch

    from dsconvert.formats.official.build import Builder
    from dsconvert.safepickle.nodes import Node


def state_of(builder: Builder, root: Node, where: str) -> dict[str, torch.Tensor]:
    """What ``state_dict()`` of the module ``root`` would hold, read from the file.

    Raises:
        CorruptSnapshotError: a part of it is no module or no tensor.
    """
    found: dict[str, torch.Tensor] = {}
    stack: list[tuple[Node, str, int]] = [(root, "", 0)]
    while stack:
        node, prefix, depth = stack.pop()
        path = f"{where}.{prefix}".rstrip(".")
        if class_key(node) is None:
            raise builder._fail(path, "is no module")
        if depth > MAX_MODULE_DEPTH:
            raise builder._fail(path, "is nested too deep")
        state = builder._state(node, path)
        for table in ("_parameters", "_buffers"):
            for name, value in builder._mapping(state.get(table), path).items():
                if value is not None:
                    found[prefix + name] = builder._tensor(value, f"{path}.{name}").detach()
        children = builder._mapping(state.get("_modules"), path)
        for name, child in reversed(children.items()):
            if child is not None:
                stack.append((child, f"{prefix}{name}.", depth + 1))
    return found
