"""The two interfaces of this package: a file that holds generators, and a format of such files.

Every format provides a subclass of :class:`GeneratorFile`; its users need to know nothing of the
format. :class:`FileFormat` is the entry in :mod:`dsconvert.formats.registry`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import nn

from dsconvert.config.choices import Noise
from dsconvert.config.values import class_argument
from dsconvert.data.classes import classes_of
from dsconvert.errors import AdapterError, UsageError
from dsconvert.formats.seeds import official_draws, sampled_draws
from dsconvert.model.inputs import adapter_inputs, values_of
from dsconvert.model.pictures import FromUnit

if TYPE_CHECKING:
    import os

    from dsconvert.adapter import Adapter, Sampler
    from dsconvert.formats.seeds import Draw
    from dsconvert.model.inputs import Inputs
    from dsconvert.records import Export
    from dsconvert.records.pictures import PictureSpec
    from dsconvert.records.sounds import MelSpec


@dataclass(frozen=True, kw_only=True)
class ModuleSource:
    """How to build the generator of a state dict that no adapter knows.

    Attributes:
        factory: ``package.path:name`` of a callable without arguments (or a class) that returns the
            original architecture.
        key: the entry of the file that holds its state dict (dots for nested ones, and for a
            prefix of its names); None: found.
        shapes: of one sample of each argument of a forward call, for normal latents. Text stands
            for uniformly drawn classes: ``class:10`` for labels (n,) of type int64,
            ``onehot:10`` for floats (n, 10).

    Raises:
        UsageError: a text that is neither.
    """

    factory: str
    key: str | None = None
    shapes: tuple[tuple[int, ...] | str, ...] = ()

    def __post_init__(self) -> None:
        """Check the texts."""
        for each in self.shapes:
            if isinstance(each, str):
                try:
                    class_argument(each)
                except ValueError as error:
                    raise UsageError(
                        f"an argument of {self.factory}: {error}; or give a shape, such as (256,)."
                    ) from None


@dataclass(frozen=True, kw_only=True, eq=False)
class GeneratorFile(ABC):
    """An opened file: its facts, its generators on demand, and the way to write it back.

    Attributes:
        path: None for a file that exists in memory only.
        adapter: the codebase that the generators belong to; None where no adapter knows it.
        config: facts about the main generator, plain data.
        keys: the file's entries in its order, without those that were dropped.
        generators: entries that are generators, the main one (which makes the images) first.
        live: modules that are kept, by entry.
        given: a sampler of inputs that takes the place of the file's own one.
    """

    format_name: ClassVar[str]
    """For people, for example ``official snapshot``."""
    suffixes: ClassVar[tuple[str, ...]]
    """Of the files that :meth:`save` writes, the usual one first; the input's own is always one."""

    path: Path | None
    adapter: Adapter | None
    config: Mapping[str, Any]
    keys: tuple[str, ...]
    generators: tuple[str, ...]
    live: dict[str, nn.Module] = field(repr=False, default_factory=dict[str, nn.Module])
    given: Inputs | None = field(repr=False, default=None)

    @property
    def generator(self) -> nn.Module:
        """The main generator, read on first use; the same object from then on."""
        main = self.generators[0]
        if main not in self.live:
            self.live[main] = self.module(main)
        return self.live[main]

    def module(self, key: str) -> nn.Module:
        """Return the module under ``key`` in float32: the kept one, or else read from the file.

        Raises:
            UsageError: there is no such entry, or it is no module.
            SnapshotError: the file's content can't be built.
        """
        return self.live[key] if key in self.live else self.read(key)

    @abstractmethod
    def read(self, key: str) -> nn.Module:
        """Build the module under ``key`` anew; the errors are those of :meth:`module`."""

    def has_module(self, key: str) -> bool:
        """Return whether :meth:`module` accepts ``key``."""
        return key in self.generators

    def is_private(self, key: str) -> bool:  # noqa: ARG002 - for formats that can tell
        """Return whether nobody else holds the module under ``key``: it may run without a copy."""
        return False

    def inputs(self, model: nn.Module | None = None) -> Sampler | None:
        """Return a sampler of inputs for ``model`` (None: the main generator), where one is known.

        ``model`` is a generator of this file, or a converted one.
        """
        if self.given is not None or self.adapter is None:
            return self.given
        return adapter_inputs(self.adapter, self.generator if model is None else model)

    def pictures(self) -> PictureSpec | None:
        """Return the pictures that the main generator reads; None where it reads none."""
        return None if self.adapter is None else self.adapter.pictures(self.generator)

    def sounds(self) -> MelSpec | None:
        """Return the spectrograms that the main generator reads; None where it makes no sound."""
        return None if self.adapter is None else self.adapter.sounds(self.generator)

    def picture(self, model: nn.Module | None = None) -> nn.Module:
        """Return ``model`` (None: the main generator) as a module that returns images.

        Its output is one tensor (N, C, H, W) in [-1, 1]. ``model`` itself where it does so already.
        """
        model = self.generator if model is None else model
        return self.shown(model) if self.adapter is None else self.adapter.picture(model)

    def shown(self, model: nn.Module) -> nn.Module:
        """Return a ``model`` that no adapter knows with its image in [-1, 1].

        Its images have the range of the pictures that it reads, where it reads some.
        """
        return FromUnit(model) if values_of(self.given) == "unit" else model

    @property
    def classes(self) -> int:
        """The number of classes that :meth:`draws` takes; 0: the inputs hold none."""
        return classes_of(self.inputs())

    @property
    def is_drawn_officially(self) -> bool:
        """Whether a seed means the latents of the official ``gen_images.py``."""
        return False

    def draws(self, label: int | None) -> Draw:
        """Return the arguments of one forward call (batch 1) as a function of a seed.

        Inputs that the caller gives (``given``) take the place of the official latents, too.

        Args:
            label: the class, for a conditional generator.

        Raises:
            UsageError: a class for an unconditional generator or the reverse, or the inputs are
                unknown.
        """
        if self.given is None and self.is_drawn_officially:
            return official_draws(self.generator, label)
        return sampled_draws(self.inputs(), label, self.path)

    def truncation(self, psi: float) -> Mapping[str, Any]:
        """Return the keywords of a forward call that truncates latents by ``psi``; none at 1.

        Raises:
            UsageError: the generator can't truncate.
        """
        if psi == 1:
            return {}
        adapter, model = self.adapter, self.generator
        if adapter is None or not adapter.can_truncate:
            raise UsageError(
                f"--trunc {psi:g}: the {type(model).__name__} of {self.path} has no mapping "
                "network, whose mean latents could be pulled towards; leave it out."
            )
        try:
            return adapter.truncation(model, psi)
        except AdapterError as error:
            raise UsageError(f"--trunc {psi:g}: {self.path}: {error}; leave it out.") from None

    @abstractmethod
    def save(
        self,
        models: Mapping[str, nn.Module],
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
    ) -> None:
        """Write a file of the same format with ``models`` in it, whole or not at all.

        Args:
            models: generators by entry; everything else stays as it is in this file.
            path: may be this file's own.
            overwrite: whether ``path`` may exist.

        Raises:
            UsageError: an entry that can't be replaced.
            OutputError: the file can't be written, or a weight overflows in the file's own type.
            SnapshotError: the format can't hold a model.
        """

    @property
    @abstractmethod
    def is_rebuildable(self) -> bool:
        """Whether the main generator can be built without its file: safetensors may hold it."""

    @abstractmethod
    def save_safetensors(
        self, model: nn.Module, path: Path, *, noise: Noise, overwrite: bool
    ) -> Export:
        """Write ``model`` (the main generator, or its conversion) alone, with its architecture.

        The file is loaded again and its images are compared before it gets its name.

        Raises:
            AdapterError: nothing could rebuild the generator from such a file.
            ExportError: the format can't describe the model, or the model comes back different.
            OutputError: the file can't be written.
        """


class FileFacts(Protocol):
    """The facts that ``inspect`` shows."""

    def as_dict(self) -> dict[str, Any]:
        """Return them as plain data for JSON."""
        ...


@dataclass(frozen=True, kw_only=True)
class FileFormat:
    """One format of files with generators.

    Attributes:
        file: the class that ``open`` returns an object of.
        detects: whether a path holds this format; reads a few bytes and runs nothing.
        open: ``open(path, drop, module, adapters)``; ``drop`` names entries to leave out,
            ``module`` says how to build a generator that no adapter knows, ``adapters`` are asked
            before the installed ones.
        inspect: ``inspect(path, module, adapters)``.
    """

    file: type[GeneratorFile]
    detects: Callable[[Path], bool]
    open: Callable[[Path, Collection[str], ModuleSource | None, Sequence[Adapter]], GeneratorFile]
    inspect: Callable[[Path, ModuleSource | None, Sequence[Adapter]], FileFacts]

    @property
    def name(self) -> str:
        """The name of the format."""
        return self.file.format_name


def refuse_module(path: Path, module: ModuleSource | None, what: str) -> None:
    """Refuse ``--module`` for a file that brings its own architecture.

    Args:
        path: the file.
        module: the value of the option.
        what: the format of the file, with an article.

    Raises:
        UsageError: ``module`` is given.
    """
    if module is not None:
        raise UsageError(
            f"--module is for state dicts; {path} is {what}, and says by itself how it is built. "
            "Leave the option out."
        )
