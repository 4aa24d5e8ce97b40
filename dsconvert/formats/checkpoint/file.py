"""An opened checkpoint of another codebase: its generators on demand, and the way to write it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from dsconvert.adapter import adapter_for
from dsconvert.config.choices import Noise
from dsconvert.errors import CorruptSnapshotError, SnapshotError, UsageError
from dsconvert.formats.base import GeneratorFile
from dsconvert.formats.bounded import bounded
from dsconvert.formats.checkpoint.codebase import UNEXPECTED, Codebase
from dsconvert.formats.checkpoint.places import Place, elements, untidied
from dsconvert.formats.checkpoint.read import ENTRY, read
from dsconvert.formats.restructure import describe_changes, restructure
from dsconvert.formats.safetensors.compare import exported, same_images
from dsconvert.formats.safetensors.write import serialised, without_noise
from dsconvert.model.blank import blank
from dsconvert.model.copying import isolated_copy
from dsconvert.model.precision import as_stored, widen
from dsconvert.util.files import stream, whole_file, whole_files
from dsconvert.util.version import VERSION

if TYPE_CHECKING:
    import os

    from dsconvert.adapter import Sampler
    from dsconvert.records import Export
    from dsconvert.records.pictures import PictureSpec

State = Mapping[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint(GeneratorFile):
    """A checkpoint; ``config`` holds the facts that the codebase builds the original from."""

    format_name = "checkpoint"
    suffixes = (".pth", ".pt", ".ckpt", ".bin", ".tar", ".th", "", ".safetensors")

    path: Path
    codebase: Codebase
    converted: bool
    entries: Mapping[str, Any] = field(repr=False)
    states: Mapping[str, State] = field(repr=False)
    recipes: Mapping[str, Any] = field(repr=False)
    """By generator: the changes of a conversion; see :mod:`dsconvert.formats.restructure`."""
    spelled: tuple[Mapping[str, Any], tuple[Place, ...]] = field(repr=False, default=({}, ()))
    """The entries before wrappers' names were taken off, and their places."""

    def read(self, key: str) -> nn.Module:
        """Build the generator of that name anew, in eval mode, in float32.

        Raises:
            UsageError: there is none.
            CorruptSnapshotError: the tensors do not fit the architecture.
        """
        if key not in self.states:
            raise UsageError(
                f"{self.path} has no generator {key!r}; it has {', '.join(self.generators)}."
            )
        return self._built(self.path, self.recipes.get(key), self.states[key])

    def inputs(self, model: nn.Module | None = None) -> Sampler | None:
        """Return a sampler of inputs, where the codebase knows one."""
        if self.given is not None:
            return self.given
        return self.codebase.sampler(self.generator if model is None else model)

    def pictures(self) -> PictureSpec | None:
        """Return the pictures that the main generator reads, where the codebase knows some."""
        return self.codebase.pictures(self.generator)

    def picture(self, model: nn.Module | None = None) -> nn.Module:
        """Return a module that returns images."""
        model = self.generator if model is None else model
        return (
            self.codebase.picture(model)
            if self.adapter is not None
            else self.shown(self.codebase.picture(model))
        )

    @property
    def is_rebuildable(self) -> bool:
        """True: the codebase builds the original, and a recipe leads to the converted one."""
        return True

    def save(
        self,
        models: Mapping[str, nn.Module],
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
    ) -> None:
        """Write the checkpoint with converted generators; see :func:`save_checkpoint`."""
        main = self.generators[0]
        if unknown := sorted(set(models) - set(self.generators)):
            raise UsageError(f"{self.path} has no generator {', '.join(unknown)} to replace.")
        states: dict[str, State] = dict(self.states)
        recipes: dict[str, Any] = {k: v for k, v in self.recipes.items() if k not in models}
        for key, model in models.items():
            made = {k: v.detach().cpu() for k, v in model.state_dict().items()}
            states[key] = as_stored(made, self.states[key], f"{key} in {self.path}")
            try:
                recipes[key] = describe_changes(self.codebase.blank(self.config), model)
            except ValueError as error:
                raise SnapshotError(f"the converted {key} can't be described: {error}.") from error
            # A file that can't be read back must not be written.
            self._built(Path(path), recipes[key], states[key])
        mark: dict[str, Any] = {
            "version": 1,
            "dsconvert": VERSION,
            "adapter": self.codebase.name,
            "config": dict(self.config),
            "recipe": recipes.get(main),
            "recipes": recipes,
        }
        if Path(path).suffix == ".safetensors":
            content = serialised(states[main], ENTRY, mark)
            with whole_file(path, overwrite=overwrite) as beside:
                beside.write_bytes(content)
            return
        entries = untidied(self.codebase.replaced(self.entries, states), *self.spelled)
        entries[ENTRY] = mark
        with whole_file(path, overwrite=overwrite) as beside, stream(beside) as out:
            torch.save(entries, out)

    def save_safetensors(
        self, model: nn.Module, path: Path, *, noise: Noise, overwrite: bool
    ) -> Export:
        """Write ``model`` as a converted checkpoint in a safetensors file, and compare its images.

        Raises:
            UsageError: the inputs are unknown.
            SnapshotError: the model has changed by more than a recipe can describe.
            ExportError: the model comes back different.
            OutputError: the file can't be written.
        """
        began = time.perf_counter()
        twin = isolated_copy(model).eval().requires_grad_(False)
        if noise == "zero":
            without_noise(twin, adapter_for(twin))
        inputs = self.inputs()
        # Under a name with the suffix, by which the format is known.
        with whole_files(path, overwrite=overwrite) as file:
            self.save({self.generators[0]: twin}, file)
            content = read(file, "safetensors")
            mark = content.pop(ENTRY)
            loaded = self._built(file, mark["recipe"], content["state_dict"])
            error, reach = same_images(twin, loaded, path, inputs)
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

    def _built(self, path: Path, recipe: Any, state: State) -> nn.Module:
        """Build the architecture with the tensors of a file in it, in float32.

        No memory is taken for other weights.
        """
        try:
            # The user's own module may do anything, and its size is no concern of the file.
            limit = bounded(elements(state)) if self.adapter is not None else nullcontext()
            with limit:
                model = self.codebase.blank(self.config)
            if recipe is not None:
                with blank():
                    restructure(model, recipe)
            model.load_state_dict(state, strict=True, assign=True)
        except UNEXPECTED as error:
            said = " ".join(str(error).split())[:400]
            raise CorruptSnapshotError(
                f"{path} does not fit {self.codebase.name}'s generator ({said}). "
                f"{self.codebase.remedy}"
            ) from error
        widen(model)
        for module in model.modules():
            for hook in module._forward_pre_hooks.values():
                if isinstance(hook, WeightNorm):
                    module.__dict__["weight"] = hook.compute_weight(module).detach()
                if isinstance(hook, SpectralNorm):
                    # As torch leaves it when the norm is put on; computed anew in each call.
                    module.__dict__["weight"] = module.get_parameter("weight_orig").detach()
        return model.eval()


def save_checkpoint(
    checkpoint: Checkpoint,
    models: nn.Module | Mapping[str, nn.Module],
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> None:
    """Write the checkpoint with converted generators, and how to build them, in it.

    A name that ends in ``.safetensors`` gets the main generator alone.

    Args:
        checkpoint: the source of everything else.
        models: the main generator, or generators by name.
        path: written beside it first, so that it may be the checkpoint's own.
        overwrite: whether ``path`` may exist.

    Raises:
        UsageError: a generator that the file does not have.
        OutputError: the file can't be written, or a weight overflows in the file's own type.
        SnapshotError: a model has changed by more than a recipe can describe.
    """
    given = dict(models) if isinstance(models, Mapping) else {checkpoint.generators[0]: models}
    checkpoint.save(given, path, overwrite=overwrite)
