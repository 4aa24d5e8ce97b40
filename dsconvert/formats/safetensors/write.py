"""Write a generator as safetensors with its architecture in the header; load it again, compare."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dsconvert.adapter import Adapter, adapter_for
from dsconvert.config.choices import Noise
from dsconvert.errors import AdapterError, ExportError
from dsconvert.export.graphs import need
from dsconvert.formats.restructure import describe_changes
from dsconvert.formats.safetensors.compare import exported, same_images
from dsconvert.formats.safetensors.header import KEY, VERSIONS
from dsconvert.formats.safetensors.read import folded, load_plain, rebuilt
from dsconvert.model.copying import isolated_copy
from dsconvert.model.inputs import Inputs
from dsconvert.model.model_types import types_of
from dsconvert.model.precision import as_stored, widen
from dsconvert.records import Export
from dsconvert.util.files import whole_file
from dsconvert.util.version import VERSION


def without_noise(model: nn.Module, adapter: Adapter | None) -> None:
    """Set the weights of the noise injections that ``adapter`` knows to zero, in place."""
    noises = types_of(model, adapter).noises
    for module in model.modules():
        if isinstance(module, noises):
            module.get_parameter("weight").zero_()


def serialised(state: Mapping[str, Tensor], key: str, header: Mapping[str, Any]) -> bytes:
    """Return the content of a safetensors file.

    Args:
        state: tensors by name.
        key: the entry of the metadata that holds ``header`` as JSON.
        header: plain data.

    Raises:
        MissingExtraError: safetensors is not installed.
    """
    need("safetensors", "safetensors")
    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        # The format refuses two names for one memory.
        shared = tensor.untyped_storage().data_ptr() in seen
        seen.add(tensor.untyped_storage().data_ptr())
        tensors[name] = tensor.contiguous().clone() if shared else tensor.contiguous()
    # Not by its save_file, which makes files that only their owner can read.
    save: Any = import_module("safetensors.torch").save
    return save(tensors, metadata={key: json.dumps(header), "format": "pt"})


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
        ExportError: the model holds a part that can't be described, or comes back different.
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
    twin = folded(widen(isolated_copy(model).eval().requires_grad_(False)))
    if noise == "zero":
        without_noise(twin, adapter)
    config = dict(adapter.describe(twin))
    try:
        changes = describe_changes(rebuilt(adapter, config), twin, complete=True)
    except ValueError as error:
        raise ExportError(
            f"safetensors can't hold the architecture of this {type(model).__name__}: {error}. "
            "Export to another format."
        ) from error
    header = {
        "version": VERSIONS[-1],
        "dsconvert": VERSION,
        "adapter": adapter.name,
        "config": config,
        "changes": changes,
    }
    stored = as_stored(twin.state_dict(), own, str(path))
    twin.load_state_dict(stored)  # as rounded as the file
    with whole_file(path, overwrite=overwrite) as beside:
        beside.write_bytes(serialised(stored, KEY, header))
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
