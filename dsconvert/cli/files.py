"""Files that the settings of a command name: generators to open, plans to read."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from dsconvert.config.files import Module, Source
from dsconvert.config.pictures import Calibrated
from dsconvert.errors import PlanError, UsageError
from dsconvert.formats.base import GeneratorFile, ModuleSource
from dsconvert.formats.given_inputs import with_pictures
from dsconvert.formats.registry import open_file
from dsconvert.records import Plan


def source_of(module: Module) -> ModuleSource | None:
    """The factory that ``--module`` and its companions name.

    Raises:
        UsageError: a companion without it.
    """
    if module.module is None:
        if module.key or module.input:
            raise UsageError("--key and --input belong to --module PACKAGE.PATH:FACTORY.")
        return None
    return ModuleSource(factory=module.module, key=module.key, shapes=module.input)


def opened(path: str, options: Source, *, drop: Collection[str] = ()) -> GeneratorFile:
    """Open a file of any format, with the inputs that ``--calibration`` names."""
    file = open_file(path, drop=drop, module=source_of(options.source))
    return with_pictures(file, options.pictures) if isinstance(options, Calibrated) else file


def read_plan(path: str) -> Plan:
    """Read a plan that a person may have edited.

    Raises:
        PlanError: the file can't be read, or is no plan.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # a NUL in the path, or no UTF-8
        raise PlanError(f"can't read the plan {path}: {error}.") from None
    return Plan.from_json(text)
