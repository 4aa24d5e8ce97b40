"""An opened safetensors export: one generator, with its architecture in the header."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from dsconvert.adapter import Adapter, adapter_for
from dsconvert.config.choices import Noise
from dsconvert.errors import UsageError
from dsconvert.export.graphs import need
from dsconvert.formats.base import GeneratorFile
from dsconvert.formats.safetensors.header import KEY
from dsconvert.formats.safetensors.read import load_plain
from dsconvert.formats.safetensors.write import save_plain
from dsconvert.model.precision import widen

if TYPE_CHECKING:
    import os

    from dsconvert.records import Export

_MAIN = "G_ema"


@dataclass(frozen=True, kw_only=True, eq=False)
class PlainFile(GeneratorFile):
    """A safetensors export; ``config`` holds the facts that the adapter describes."""

    format_name = "safetensors export"
    suffixes = (".safetensors",)

    path: Path
    own: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor], repr=False)
    """The file's tensors, for their types."""

    def read(self, key: str) -> nn.Module:
        """Refuse any entry but the one generator, which is kept.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"{self.path} has no entry {key!r}, only {self.keys[0]}.")

    @property
    def is_drawn_officially(self) -> bool:
        """Whether the generator has a ``z_dim``, as those of the official code have."""
        return hasattr(self.generator, "z_dim")

    @property
    def is_rebuildable(self) -> bool:
        """True: the file itself was built so."""
        return True

    def save(
        self,
        models: Mapping[str, nn.Module],
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
    ) -> None:
        """Write the generator with its tensors in the file's own types; see :func:`save_plain`.

        Raises:
            MissingExtraError: safetensors is not installed.
            ExportError: the model holds a part that can't be described, or comes back different.
            OutputError: the file can't be written, or a weight overflows in the file's own type.
        """
        need("safetensors", "safetensors")
        self.save_safetensors(
            models[self.generators[0]], Path(path), noise="random", overwrite=overwrite
        )

    def save_safetensors(
        self, model: nn.Module, path: Path, *, noise: Noise, overwrite: bool
    ) -> Export:
        """Write ``model`` with its tensors in the file's own types; see :func:`save_plain`."""
        return save_plain(
            model, path, noise=noise, overwrite=overwrite, inputs=self.inputs(), own=self.own
        )


def is_plain(path: Path) -> bool:
    """Return whether a file looks like one that :func:`save_plain` writes, by its first bytes."""
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError:
        return False
    return head[8:10] == b'{"' and f'"{KEY}"'.encode() in head


def open_plain(path: Path, *, adapters: Sequence[Adapter] = ()) -> PlainFile:
    """Open a safetensors export.

    Raises:
        DsconvertError: see :func:`load_plain`.
    """
    model = load_plain(path, adapters=adapters)
    adapter = adapter_for(model, adapters)
    own = model.state_dict()
    return PlainFile(
        path=path,
        adapter=adapter,
        config=adapter.describe(model) if adapter is not None else {},
        keys=(_MAIN,),
        generators=(_MAIN,),
        live={_MAIN: widen(model)},
        own=own,
    )
