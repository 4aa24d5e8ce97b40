"""Loading and saving checkpoints of other codebases."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn
from torch.nn.utils.spectral_norm import SpectralNorm

from dsconvert.adapter import adapters
from dsconvert.errors import (
    CorruptSnapshotError,
    ForeignFileError,
    MissingExtraError,
    SnapshotError,
    UnsupportedSnapshotError,
    UsageError,
)
from dsconvert.formats.checkpoint.module import ModuleCodebase, ModuleSource
from dsconvert.formats.checkpoint.placed import placed
from dsconvert.formats.checkpoint.places import Place, tidied, untidied
from dsconvert.formats.checkpoint.read import ENTRY, check_exists, is_checkpoint, read
from dsconvert.formats.restructure import describe_changes, restructure
from dsconvert.model.precision import as_stored, widen
from dsconvert.util.extras import pip_install
from dsconvert.util.files import stream, whole_file
from dsconvert.util.version import VERSION

if TYPE_CHECKING:
    import os

    from dsconvert.adapter import Sampler

_STRANGE = (AttributeError, TypeError, ValueError, LookupError, ArithmeticError, RuntimeError)
"""What code that expects an honest file may raise on another."""


State = Mapping[str, torch.Tensor]


class Codebase(Protocol):
    """What a checkpoint needs of an adapter, or of a user's own module."""

    @property
    def name(self) -> str:
        """For messages and for the mark of a converted file."""
        ...

    def states(self, checkpoint: Mapping[str, Any]) -> Mapping[str, State]:
        """See :class:`dsconvert.adapter.Adapter`."""
        ...

    def read_config(self, state: State) -> Mapping[str, Any]:
        """See :class:`dsconvert.adapter.Adapter`."""
        ...

    def make(self, config: Mapping[str, Any]) -> nn.Module:
        """See :class:`dsconvert.adapter.Adapter`."""
        ...

    def replaced(
        self, checkpoint: Mapping[str, Any], states: Mapping[str, State]
    ) -> dict[str, Any]:
        """See :class:`dsconvert.adapter.Adapter`."""
        ...

    def picture(self, model: nn.Module) -> nn.Module:
        """See :class:`dsconvert.adapter.Adapter`."""
        ...

    def sampler(self, model: nn.Module) -> Sampler | None:
        """A sampler of inputs; None where nobody knows them."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """A checkpoint of another codebase: what is in it, and its generators on demand."""

    path: Path
    adapter: Codebase
    config: Mapping[str, Any]
    """Facts about the original generator, plain data; what the adapter makes one from."""
    keys: tuple[str, ...]
    """The file's entries, without those that were dropped."""
    generators: tuple[str, ...]
    """Names of the generators, the one that makes the images first."""
    converted: bool
    entries: Mapping[str, Any] = field(repr=False)
    states: Mapping[str, Mapping[str, torch.Tensor]] = field(repr=False)
    recipes: Mapping[str, Any] = field(repr=False)
    live: dict[str, nn.Module] = field(repr=False, default_factory=dict[str, nn.Module])
    spelled: tuple[Mapping[str, Any], tuple[Place, ...]] = field(repr=False, default=({}, ()))
    """The entries before wrappers' names were taken off, and where they were."""

    @property
    def generator(self) -> nn.Module:
        """The one that makes the images; the same object every time."""
        key = self.generators[0]
        if key not in self.live:
            self.live[key] = self.module(key)
        return self.live[key]

    def has_module(self, key: str) -> bool:
        """Whether there is a generator of that name."""
        return key in self.generators

    def module(self, key: str) -> nn.Module:
        """The generator of that name, in eval mode.

        Raises:
            UsageError: there is none.
            CorruptSnapshotError: the tensors do not fit the architecture.
        """
        if key in self.live:
            return self.live[key]
        if key not in self.states:
            raise UsageError(
                f"{self.path} has no generator {key!r}; it has {', '.join(self.generators)}."
            )
        return _built(self.path, self.adapter, self.config, self.recipes.get(key), self.states[key])

    def inputs(self) -> Sampler | None:
        """A sampler of inputs, where the codebase knows one."""
        return self.adapter.sampler(self.generator)


def _built(
    path: Path,
    adapter: Codebase,
    config: Mapping[str, Any],
    recipe: Any,
    state: Mapping[str, torch.Tensor],
) -> nn.Module:
    """The architecture, with the tensors of a file in it; no memory is taken for others.

    In float32, whatever type they have in the file.
    """
    own = isinstance(adapter, ModuleCodebase)
    try:
        if own:  # a user's code may do anything when it builds
            model = adapter.make(config)
        else:
            with torch.device("meta"):
                model = adapter.make(config)
        if recipe is not None:
            with torch.device("meta"):
                restructure(model, recipe)
        model.load_state_dict(state, strict=True, assign=True)
    except _STRANGE as error:
        said = " ".join(str(error).split())[:400]
        remedy = (
            "Check that the factory builds the architecture that was trained."
            if own
            else "It was not written by that code, or by a version that is not known here."
        )
        raise CorruptSnapshotError(
            f"{path} does not fit {adapter.name}'s generator ({said}). {remedy}"
        ) from error
    widen(model)
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):
                # As torch leaves it when the norm is put on; computed anew in each call.
                module.__dict__["weight"] = module.get_parameter("weight_orig").detach()
    return model.eval()


def _find(path: Path, content: Mapping[str, Any]) -> tuple[Codebase, Mapping[str, Any]]:
    known = [a for a in adapters() if a.has_checkpoints]
    stumbled = ""
    for adapter in known:
        try:
            states = adapter.states(content)
        except _STRANGE as error:
            stumbled += f"; it looks like a file of {adapter.name}, but {error}"
            continue
        if states:
            return adapter, states
    for adapter in known if not stumbled else ():
        with suppress(*_STRANGE):
            if (elsewhere := placed(adapter, content)) is not None:
                return elsewhere, elsewhere.states(content)
    entries = ", ".join(list(content)[:12]) or "none"
    raise UnsupportedSnapshotError(
        f"{path} is a checkpoint that no installed adapter knows (its entries: {entries}; known "
        f"codebases: {', '.join(a.name for a in known) or 'none'}{stumbled}). Say how its "
        "generator is built: --module package.path:factory."
    )


def _mark(path: Path, content: dict[str, Any]) -> Mapping[str, Any] | None:
    """The entry of a converted file."""
    mark = content.pop(ENTRY, None)
    if mark is None:
        return None
    if not isinstance(mark, Mapping) or mark.get("version") != 1:
        raise UnsupportedSnapshotError(
            f"{path} was written by another version of dsconvert. Convert the original again."
        )
    if not isinstance(mark.get("recipes"), Mapping) or not isinstance(mark.get("config"), Mapping):
        raise CorruptSnapshotError(
            f"{path} has a damaged {ENTRY} entry. Convert the original again."
        )
    return mark


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    drop: Collection[str] = (),
    module: ModuleSource | None = None,
) -> Checkpoint:
    """Open a checkpoint without running anything in it.

    Args:
        path: a ``torch.save`` file (zip or old format) or a safetensors file, also a converted one.
        drop: entries to leave out.
        module: how to build the generator of a codebase that no adapter knows. Importing it runs
            that code.

    Raises:
        ForeignFileError: the file is missing or something else.
        CorruptSnapshotError: it is damaged, or does not fit the architecture.
        UnsafeSnapshotError: it refers to what would have to run.
        UnsupportedSnapshotError: no adapter knows it.
        UsageError: an option does not fit the file.
    """
    where = Path(path)
    check_exists(where)
    form = is_checkpoint(where)
    if form is None:
        raise ForeignFileError(f"{where} is no torch.save or safetensors file.")
    content = read(where, form)
    mark = _mark(where, content)
    dropped = {drop} if isinstance(drop, str) else set(drop)
    if unknown := sorted(dropped - set(content)):
        raise UsageError(
            f"{where} has no entry {', '.join(unknown)} to drop. It has: {', '.join(content)}."
        )
    for key in dropped:
        del content[key]
    adapter: Codebase
    original, spelled = content, ()
    if module is not None:
        own = ModuleCodebase(module)
        adapter, states = own, own.states(content, converted=tuple(mark["recipes"]) if mark else ())
        if not states:
            raise UsageError(
                f"no state dict in {where} fits {module.factory} (its entries: "
                f"{', '.join(list(content)[:10])}). Name the entry with --key, or mend the factory."
            )
    else:
        content, spelled = tidied(content)
        adapter, states = _find(where, content)
    if mark is not None and mark.get("adapter") != adapter.name:
        hint = "; give the --module that it was converted with" if module is None else ""
        raise UsageError(
            f"{where} was converted as {mark.get('adapter')!r}, not as {adapter.name!r}{hint}."
        )
    main = next(iter(states))
    try:
        config = (
            dict(mark["config"]) if mark is not None else dict(adapter.read_config(states[main]))
        )
    except _STRANGE as error:
        raise CorruptSnapshotError(
            f"{where} looks like a file of {adapter.name}, but its generator lacks parts ({error})."
        ) from error
    recipes = dict(mark["recipes"]) if mark is not None else {}
    if mark is not None and form == "safetensors":
        recipes = {main: mark.get("recipe")}  # it holds one generator, under a name of its own
    return Checkpoint(
        path=where,
        adapter=adapter,
        config=config,
        keys=tuple(content),
        generators=tuple(states),
        converted=mark is not None,
        entries=content,
        states=states,
        recipes=recipes,
        spelled=(original, spelled),
    )


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
        checkpoint: where everything else comes from.
        models: the main generator, or generators by name.
        path: written beside it first, so that it may be the checkpoint's own.
        overwrite: whether ``path`` may exist.

    Raises:
        UsageError: a generator that the file has not.
        OutputError: the file can't be written, or a weight overflows in the file's own type.
        SnapshotError: a model has changed by more than a recipe can say.
    """
    main = checkpoint.generators[0]
    given = dict(models) if isinstance(models, Mapping) else {main: models}
    if unknown := sorted(set(given) - set(checkpoint.generators)):
        raise UsageError(f"{checkpoint.path} has no generator {', '.join(unknown)} to replace.")
    states: dict[str, Mapping[str, torch.Tensor]] = dict(checkpoint.states)
    recipes: dict[str, Any] = {k: v for k, v in checkpoint.recipes.items() if k not in given}
    for key, model in given.items():
        made = {k: v.detach().cpu() for k, v in model.state_dict().items()}
        states[key] = as_stored(made, checkpoint.states[key], f"{key} in {checkpoint.path}")
        base = _base(checkpoint)
        try:
            recipes[key] = describe_changes(base, model)
        except ValueError as error:
            raise SnapshotError(f"the converted {key} can't be described: {error}.") from error
        # What can't be read back must not be written.
        _built(Path(path), checkpoint.adapter, checkpoint.config, recipes[key], states[key])
    mark: dict[str, Any] = {
        "version": 1,
        "dsconvert": VERSION,
        "adapter": checkpoint.adapter.name,
        "config": dict(checkpoint.config),
        "recipe": recipes.get(main),
        "recipes": recipes,
    }
    if Path(path).suffix == ".safetensors":
        _write_safetensors(states[main], mark, path, overwrite=overwrite)
        return
    content = checkpoint.adapter.replaced(checkpoint.entries, states)
    content = untidied(content, *checkpoint.spelled)
    content[ENTRY] = mark
    with whole_file(path, overwrite=overwrite) as beside, stream(beside) as out:
        torch.save(content, out)


def _base(checkpoint: Checkpoint) -> nn.Module:
    if isinstance(checkpoint.adapter, ModuleCodebase):
        return checkpoint.adapter.make(checkpoint.config)
    with torch.device("meta"):
        return checkpoint.adapter.make(checkpoint.config)


def _write_safetensors(
    state: Mapping[str, torch.Tensor],
    mark: Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    overwrite: bool,
) -> None:
    try:
        library = import_module("safetensors.torch")
    except ImportError as error:
        raise MissingExtraError(
            f"a .safetensors file needs safetensors, which is not installed: "
            f"{pip_install('safetensors')}."
        ) from error
    whole = {k: v.contiguous().clone() for k, v in state.items()}
    with whole_file(path, overwrite=overwrite) as beside:
        # Not its save_file, which makes files that only their owner can read.
        beside.write_bytes(library.save(whole, metadata={ENTRY: json.dumps(mark), "format": "pt"}))
