"""Open a checkpoint without running anything in it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsconvert.adapter import Adapter
from dsconvert.errors import (
    CorruptSnapshotError,
    ForeignFileError,
    UnsupportedSnapshotError,
    UsageError,
)
from dsconvert.formats.base import ModuleSource
from dsconvert.formats.checkpoint.codebase import UNEXPECTED, Codebase, find_codebase
from dsconvert.formats.checkpoint.file import Checkpoint
from dsconvert.formats.checkpoint.module import ModuleCodebase
from dsconvert.formats.checkpoint.places import tidied
from dsconvert.formats.checkpoint.read import ENTRY, check_exists, is_checkpoint, read

if TYPE_CHECKING:
    import os


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    drop: Collection[str] = (),
    module: ModuleSource | None = None,
    adapters: Sequence[Adapter] = (),
) -> Checkpoint:
    """Open a checkpoint without running anything in it.

    Args:
        path: a ``torch.save`` file (zip or old format) or a safetensors file, also a converted one.
        drop: entries to leave out.
        module: how to build the generator of a codebase that no adapter knows. Importing it runs
            that code.
        adapters: further adapters, which need not be installed.

    Raises:
        ForeignFileError: the file is missing or something else.
        CorruptSnapshotError: it is damaged, or does not fit the architecture.
        UnsafeSnapshotError: it refers to code that would have to run.
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
    codebase: Codebase
    original, spelled = content, ()
    if module is not None:
        codebase = ModuleCodebase(module)
        states = codebase.states(content, tuple(mark["recipes"]) if mark else ())
        if not states:
            raise UsageError(
                f"no state dict in {where} fits {module.factory} (its entries: "
                f"{', '.join(list(content)[:10])}). Name the entry with --key, or mend the factory."
            )
    else:
        content, spelled = tidied(content)
        codebase = find_codebase(where, content, adapters, mark)
        states = codebase.states(content)
    if mark is not None and mark.get("adapter") != codebase.name:
        hint = "; give the --module that it was converted with" if module is None else ""
        raise UsageError(
            f"{where} was converted as {mark.get('adapter')!r}, not as {codebase.name!r}{hint}."
        )
    main = next(iter(states))
    try:
        config = (
            dict(mark["config"])
            if mark is not None
            else dict(codebase.completed(codebase.read_config(states[main]), where))
        )
    except UNEXPECTED as error:
        raise CorruptSnapshotError(
            f"{where} looks like a file of {codebase.name}, but its generator lacks parts "
            f"({error})."
        ) from error
    recipes = dict(mark["recipes"]) if mark is not None else {}
    if mark is not None and form == "safetensors":
        recipes = {main: mark.get("recipe")}  # it holds one generator, under a name of its own
    return Checkpoint(
        path=where,
        adapter=codebase.adapter,
        codebase=codebase,
        config=config,
        keys=tuple(content),
        generators=tuple(states),
        converted=mark is not None,
        entries=content,
        states=states,
        recipes=recipes,
        spelled=(original, spelled),
    )


def _mark(path: Path, content: dict[str, Any]) -> Mapping[str, Any] | None:
    """Take the entry of a converted file out of ``content``; None where it is none."""
    mark = content.pop(ENTRY, None)
    if mark is None:
        return None
    if not isinstance(mark, Mapping) or mark.get("version") != 1:
        raise UnsupportedSnapshotError(
            f"{path} was written by another version of dsconvert. Convert the original again."
        )
    tables = (mark.get("recipes"), mark.get("config"))
    if not all(isinstance(t, Mapping) and all(isinstance(k, str) for k in t) for t in tables):
        raise CorruptSnapshotError(
            f"{path} has a damaged {ENTRY} entry. Convert the original again."
        )
    return mark
