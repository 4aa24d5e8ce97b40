"""Read a safetensors export: build the generator of its header, then load its tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dsconvert.adapter import Adapter, adapters
from dsconvert.errors import (
    AdapterError,
    CorruptSnapshotError,
    ForeignFileError,
    UnsupportedSnapshotError,
)
from dsconvert.export.graphs import need
from dsconvert.formats.bounded import bounded
from dsconvert.formats.restructure import restructure
from dsconvert.formats.safetensors.header import KEY, VERSIONS, upgraded
from dsconvert.model.blank import blank
from dsconvert.model.norms import fold, norm_kind
from dsconvert.util.foreign_text import from_json

if TYPE_CHECKING:
    import os

_UNEXPECTED = (
    AttributeError, KeyError, TypeError, ValueError, IndexError, RuntimeError, ArithmeticError,
)  # fmt: skip
"""Errors of a header whose changes do not fit the architecture."""


def folded(model: nn.Module) -> nn.Module:
    """Fold every norm of ``model`` into its weights, in place; return ``model``."""
    with torch.no_grad():
        for module in model.modules():
            if norm_kind(module) != "none":
                fold(module)
    return model


def rebuilt(adapter: Adapter, config: Any) -> nn.Module:
    """Build the generator of some facts on the meta device, with its norms folded.

    Raises:
        AdapterError: the adapter can't build it.
    """
    if not adapter.can_build:
        raise AdapterError(
            f"the adapter {adapter.name!r} can't rebuild an architecture from its facts, so "
            "safetensors is no format for its generators; export to another."
        )
    # Without data: the tensors come from the file.
    with blank():
        return folded(adapter.build(config)).eval().requires_grad_(False)


def load_plain(path: str | os.PathLike[str], *, adapters: Sequence[Adapter] = ()) -> nn.Module:
    """Load the generator of an export, in eval mode, without gradients.

    Raises:
        MissingExtraError: safetensors is not installed.
        ForeignFileError: the file is missing, no safetensors file, or holds no architecture.
        CorruptSnapshotError: its architecture or its tensors do not fit together.
        UnsupportedSnapshotError: a newer version's, or of an adapter that is not installed.
    """
    need("safetensors", "safetensors")
    safe_open: Any = import_module("safetensors").safe_open
    try:
        with safe_open(str(path), framework="pt") as file:
            text = (file.metadata() or {}).get(KEY)
            if text is None:
                raise ForeignFileError(
                    f"{path} holds weights without their architecture: it was not written by "
                    "dsconvert export. Name one that was, or a snapshot (.pkl)."
                )
            shapes = {k: file.get_slice(k).get_shape() for k in list(file.keys())}
            with bounded(sum(map(math.prod, shapes.values()))):
                model = _built(path, text, adapters)
            wanted = model.state_dict()
            _check_tensors(path, wanted, shapes)
            state = {k: file.get_tensor(k) for k in shapes}
    except FileNotFoundError:
        raise ForeignFileError(f"there is no file {path}; mend the name.") from None
    except OSError as error:
        raise ForeignFileError(f"can't read {path}: {error}; name another.") from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        raise CorruptSnapshotError(
            f"{path} is no whole safetensors file ({error}). Copy or download it again."
        ) from error
    kinds = {
        k: t.dtype
        for k, t in state.items()
        if t.is_floating_point() != wanted[k].is_floating_point()
    }
    if kinds:
        raise CorruptSnapshotError(f"{path} has tensors of a wrong type: {', '.join(kinds)}.")
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def _built(path: str | os.PathLike[str], text: str, given: Sequence[Adapter]) -> nn.Module:
    try:
        header: Any = from_json(text)
        if not isinstance(header, dict):
            raise TypeError("no object")
        version, name = header["version"], header["adapter"]
        config, altered = header["config"], header["changes"]
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptSnapshotError(
            f"{path} has a damaged architecture in its header ({error!r}). Export it again."
        ) from None
    if version not in VERSIONS:
        raise UnsupportedSnapshotError(
            f"{path} has version {version!r} of the format, this dsconvert reads "
            f"{VERSIONS[0]} to {VERSIONS[-1]}. "
            "Update dsconvert, or export the file again."
        )
    adapter = next((a for a in adapters(given) if a.name == name), None)
    if adapter is None:
        raise UnsupportedSnapshotError(
            f"{path} needs the adapter {name!r}, which is not installed. There are: "
            f"{', '.join(a.name for a in adapters(given))}."
        )
    try:
        model = rebuilt(adapter, config)
    except (AdapterError, ValueError) as error:
        raise CorruptSnapshotError(f"{path} describes no generator: {error}") from error
    try:
        with blank():
            restructure(model, altered if version > 1 else upgraded(altered))
    except _UNEXPECTED as error:
        raise CorruptSnapshotError(
            f"{path} describes changes that do not fit its architecture ({error}). Export it again."
        ) from error
    return model.eval().requires_grad_(False)


def _check_tensors(
    path: str | os.PathLike[str], wanted: dict[str, Tensor], given: dict[str, Any]
) -> None:
    problems = [f"{k} is missing" for k in wanted if k not in given]
    problems += [f"{k} is unknown" for k in given if k not in wanted]
    problems += [
        f"{k} is {list(given[k])}, not {list(t.shape)}"
        for k, t in wanted.items()
        if k in given and list(given[k]) != list(t.shape)
    ]
    if problems:
        raise CorruptSnapshotError(
            f"the tensors of {path} do not fit its architecture: {'; '.join(problems[:8])}"
            f"{'; ...' if len(problems) > 8 else ''}. Export it again."
        )
