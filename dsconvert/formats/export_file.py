"""The generator of any file that is known, in another format."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from dsconvert.adapter import adapter_for
from dsconvert.config.choices import Noise
from dsconvert.errors import UsageError
from dsconvert.export import check_export, export_model
from dsconvert.formats.checkpoint import Checkpoint, ModuleSource, load_checkpoint, save_checkpoint
from dsconvert.formats.checkpoint.module import ModuleCodebase
from dsconvert.formats.registry import Opened, inputs_of
from dsconvert.formats.safetensors.file import exported, same_images
from dsconvert.forms.inputs import Inputs
from dsconvert.model.copying import isolated_copy
from dsconvert.model.model_types import types_of
from dsconvert.records import Export
from dsconvert.util.files import whole_files

if TYPE_CHECKING:
    import os


def export_file(
    opened: Opened,
    path: str | os.PathLike[str],
    *,
    format: str | None = None,  # noqa: A002 - the command line's word
    noise: Noise = "random",
    seed: int = 0,
    overwrite: bool = False,
    model: nn.Module | None = None,
) -> Export:
    """Write the generator of a file to another format; load it again and compare the images.

    The arguments and errors are those of :func:`dsconvert.export.export_model`. A checkpoint of
    another codebase becomes a safetensors file of the kind that ``convert`` writes of it, whose
    architecture is built by what knows the checkpoint (an adapter, or ``--module``).

    Args:
        opened: the file.
        path: see there.
        format: see there.
        noise: see there.
        seed: see there.
        overwrite: see there.
        model: what to write instead of the file's own generator (a converted one).

    Raises:
        DsconvertError: see there; also where nothing says what the generator is called with.
    """
    name = check_export(path, format, noise=noise, overwrite=overwrite)
    model = opened.generator if model is None else model
    inputs = inputs_of(opened)
    if inputs is None:
        raise UsageError(
            f"nothing says what the generator of {opened.path} is called with: give --input 256 "
            "(the shape of one latent)."
        )
    if name == "safetensors" and isinstance(opened, Checkpoint):
        return _safetensors(opened, model, Path(path), noise, inputs, overwrite=overwrite)
    return export_model(
        model, path, format=name, noise=noise, seed=seed, overwrite=overwrite, inputs=inputs
    )


def _safetensors(
    opened: Checkpoint,
    model: nn.Module,
    path: Path,
    noise: Noise,
    inputs: Inputs,
    *,
    overwrite: bool,
) -> Export:
    began = time.perf_counter()
    twin = isolated_copy(model).eval().requires_grad_(False)
    if noise == "zero":
        noises = types_of(twin, adapter_for(twin)).noises
        for module in twin.modules():
            if isinstance(module, noises):
                module.get_parameter("weight").zero_()
    codebase = opened.adapter
    source = None
    if isinstance(codebase, ModuleCodebase):
        source = ModuleSource(factory=codebase.source.factory, shapes=codebase.source.shapes)
    # Under a name with the suffix, by which the format is known.
    with whole_files(path, overwrite=overwrite) as file:
        save_checkpoint(opened, twin, file)
        error, reach = same_images(
            twin, load_checkpoint(file, module=source).generator, path, inputs
        )
        size = file.stat().st_size
    return exported(
        model,
        path,
        inputs,
        noise=noise,
        size=size,
        compared=(error, reach),
        seconds=time.perf_counter() - began,
    )
