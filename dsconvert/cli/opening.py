"""Files as the commands' options name them."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Collection

from dsconvert.errors import UsageError
from dsconvert.formats.base import GeneratorFile, ModuleSource
from dsconvert.formats.registry import open_file


def source_of(options: Namespace) -> ModuleSource | None:
    """What ``--module`` and its companions say.

    Raises:
        UsageError: a companion without it.
    """
    if options.module is None:
        if options.key or options.input:
            raise UsageError("--key and --input belong to --module PACKAGE.PATH:FACTORY.")
        return None
    return ModuleSource(factory=options.module, key=options.key, shapes=tuple(options.input))


def opened(path: str, options: Namespace, *, drop: Collection[str] = ()) -> GeneratorFile:
    """The file, of whatever kind."""
    return open_file(path, drop=drop, module=source_of(options))
