"""safetensors with the architecture in its header: a generator to share, without a pickle.

The header's ``dsconvert_generator`` entry is JSON: the adapter's name, the facts it rebuilds the
architecture from, and what a conversion has changed in it (plain ``torch.nn`` modules, described by
checked attributes; see :mod:`dsconvert.formats.official.layers`). Nothing in the file is ever
executed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dsconvert.adapter import Adapter, adapter_for, adapters, image_tensor
from dsconvert.config.choices import Noise
from dsconvert.errors import (
    AdapterError,
    CorruptSnapshotError,
    ExportError,
    ForeignFileError,
    UnsupportedSnapshotError,
    UsageError,
)
from dsconvert.export.formats import need
from dsconvert.formats.safetensors.structure import apply_changes, changes
from dsconvert.forms.inputs import Inputs, examples_of
from dsconvert.forms.verify import BATCHES
from dsconvert.model.copying import isolated_copy
from dsconvert.model.model_types import types_of
from dsconvert.model.norms import fold, norm_kind
from dsconvert.model.observe import evaluating
from dsconvert.model.precision import as_stored, widen
from dsconvert.records import Export
from dsconvert.util.files import whole_file
from dsconvert.util.version import VERSION

if TYPE_CHECKING:
    import os

_KEY = "dsconvert_generator"
_VERSION = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class PlainFile:
    """A safetensors export, opened: one generator."""

    path: Path
    adapter: Adapter | None
    config: Mapping[str, Any]
    """Facts about the generator, as its adapter tells them."""
    generator: nn.Module
    """In float32, whatever type its tensors have in the file."""
    own: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor], repr=False)
    """The file's tensors, for their types."""
    keys: tuple[str, ...] = ("G_ema",)
    generators: tuple[str, ...] = ("G_ema",)

    def module(self, key: str) -> nn.Module:
        """The generator.

        Raises:
            UsageError: another key.
        """
        if key not in self.keys:
            raise UsageError(f"{self.path} has no entry {key!r}, only {self.keys[0]}.")
        return self.generator

    def has_module(self, key: str) -> bool:
        """Whether there is one of that name."""
        return key in self.keys

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for ``inspect``."""
        return {"path": str(self.path), "format": "safetensors", "config": dict(self.config)}


def is_plain(path: Path) -> bool:
    """Whether a file looks like what :func:`save_plain` writes, by its first bytes."""
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError:
        return False
    return head[8:10] == b'{"' and f'"{_KEY}"'.encode() in head


def open_plain(path: Path) -> PlainFile:
    """Open a safetensors export.

    Raises:
        DsconvertError: see :func:`load_plain`.
    """
    model = load_plain(path)
    adapter = adapter_for(model)
    config = adapter.describe(model) if adapter is not None else {}
    own = model.state_dict()
    return PlainFile(path=path, adapter=adapter, config=config, generator=widen(model), own=own)


def _folded(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for module in model.modules():
            if norm_kind(module) != "none":
                fold(module)
    return model


def _rebuild(adapter: Adapter, config: Any) -> nn.Module:
    if not adapter.can_build:
        raise AdapterError(
            f"the adapter {adapter.name!r} can't rebuild an architecture from its facts, so "
            "safetensors is no format for its generators; export to another."
        )
    # Without data: the tensors come from the file.
    with torch.device("meta"):
        return _folded(adapter.build(config)).eval().requires_grad_(False)


def save_plain(
    model: nn.Module,
    path: Path,
    *,
    noise: Noise,
    overwrite: bool,
    inputs: Inputs | None = None,
    own: Mapping[str, Tensor] | None = None,
) -> Export:
    """Write ``model``, with its norms folded; load it again and compare.

    Args:
        model: left as it was.
        path: the file.
        noise: ``zero`` leaves the noise out; anything else keeps it.
        overwrite: whether ``path`` may exist.
        inputs: ``inputs(n, generator)`` returns the arguments of one call with batch n.
        own: tensors whose types are written (:func:`dsconvert.model.precision.as_stored`);
            None: the model's own.

    Raises:
        AdapterError: no adapter knows the model, or it can't rebuild it.
        ExportError: the model holds what can't be described, or comes back different.
        OutputError: the file can't be written, or a weight overflows in its own type.
    """
    began = time.perf_counter()
    adapter = adapter_for(model)
    if adapter is None:
        raise AdapterError(
            f"no installed adapter knows {type(model).__name__}, so nobody could rebuild it from "
            "a safetensors file; export to torch or onnx, or write an adapter."
        )
    own = model.state_dict() if own is None else own
    twin = _folded(widen(isolated_copy(model).eval().requires_grad_(False)))
    if noise == "zero":
        noises = types_of(twin, adapter).noises
        for module in twin.modules():
            if isinstance(module, noises):
                module.get_parameter("weight").zero_()
    config = dict(adapter.describe(twin))
    header = {
        "version": _VERSION,
        "dsconvert": VERSION,
        "adapter": adapter.name,
        "config": config,
        "changes": changes(twin, _rebuild(adapter, config), adapter),
    }
    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    stored = as_stored(twin.state_dict(), own, str(path))
    twin.load_state_dict(stored)  # as rounded as the file
    for name, tensor in stored.items():
        # The format refuses two names for one memory.
        shared = tensor.untyped_storage().data_ptr() in seen
        seen.add(tensor.untyped_storage().data_ptr())
        tensors[name] = tensor.clone() if shared else tensor.contiguous()
    save: Any = import_module("safetensors.torch").save
    with whole_file(path, overwrite=overwrite) as beside:
        # Not by save_file, which makes files that only their owner can read.
        beside.write_bytes(save(tensors, metadata={_KEY: json.dumps(header), "format": "pt"}))
        error, reach = same_images(twin, widen(load_plain(beside)), path, inputs)
        size = beside.stat().st_size
    return exported(
        model,
        path,
        inputs,
        noise=noise,
        size=size,
        compared=(error, reach),
        seconds=time.perf_counter() - began,
    )


def exported(
    model: nn.Module,
    path: Path,
    inputs: Inputs | None,
    *,
    noise: Noise,
    size: int,
    compared: tuple[float, float],
    seconds: float,
) -> Export:
    """The record of a safetensors file that was written; ``compared`` is of :func:`same_images`."""
    error, reach = compared
    shapes: dict[str, tuple[int | str, ...]] = {
        f"argument {i}": ("batch", *a.shape[1:])
        for i, a in enumerate(examples_of(model, inputs))
        if isinstance(a, Tensor)
    }
    return Export(
        path=str(path),
        format="safetensors",
        files=(str(path),),
        bytes=size,
        inputs=shapes,
        noise=noise,
        planes=(),
        error=error,
        range=reach,
        batches=BATCHES,
        seconds=seconds,
    )


def same_images(
    model: nn.Module, loaded: nn.Module, path: Path, inputs: Inputs | None
) -> tuple[float, float]:
    """Check that ``loaded``, read from ``path``, makes the images of ``model``.

    Returns:
        the largest difference of a pixel, and the largest magnitude of a pixel of the original.

    Raises:
        ExportError: it makes others.
    """
    worst, reach = 0.0, 0.0
    loaded.to(next(model.parameters()).device)
    for i, n in enumerate(BATCHES):
        args = examples_of(model, inputs, n=n, seed=1 + i)
        images: list[Tensor] = []
        for each in (model, loaded):
            with evaluating(each):
                torch.manual_seed(i)
                images.append(image_tensor(each(*args)).double())
        error = (images[0] - images[1]).abs().max().item()
        worst, reach = max(worst, error), max(reach, images[0].abs().max().item())
        if not error <= 1e-6 * max(reach, 1e-3):
            raise ExportError(
                f"{path}, loaded again, differs from the model by {error:.3g} (batch {n}). Nothing "
                "was written."
            )
    return worst, reach


def load_plain(path: str | os.PathLike[str]) -> nn.Module:
    """The generator of a file that :func:`save_plain` wrote, in eval mode, without gradients.

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
            text = (file.metadata() or {}).get(_KEY)
            if text is None:
                raise ForeignFileError(
                    f"{path} holds weights without their architecture: it was not written by "
                    "dsconvert export. Name one that was, or a snapshot (.pkl)."
                )
            model = _built(path, text)
            wanted = model.state_dict()
            names = list(file.keys())
            _check_tensors(path, wanted, {k: file.get_slice(k).get_shape() for k in names})
            state = {k: file.get_tensor(k) for k in names}
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


def _built(path: str | os.PathLike[str], text: str) -> nn.Module:
    try:
        header: Any = json.loads(text)
        if not isinstance(header, dict):
            raise TypeError("no object")
        version, name = header["version"], header["adapter"]
        config, altered = header["config"], header["changes"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CorruptSnapshotError(
            f"{path} has a damaged architecture in its header ({error!r}). Export it again."
        ) from None
    if version != _VERSION:
        raise UnsupportedSnapshotError(
            f"{path} has version {version!r} of the format, this dsconvert reads {_VERSION}. "
            "Update dsconvert, or export the file again."
        )
    adapter = next((a for a in adapters() if a.name == name), None)
    if adapter is None:
        raise UnsupportedSnapshotError(
            f"{path} needs the adapter {name!r}, which is not installed. There are: "
            f"{', '.join(a.name for a in adapters())}."
        )
    try:
        model = _rebuild(adapter, config)
    except AdapterError as error:
        raise CorruptSnapshotError(f"{path} describes no generator: {error}") from error
    apply_changes(model, altered, str(path))
    return model


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
