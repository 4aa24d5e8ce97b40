"""dsconvert: make an existing GAN generator small and fast without losing its pictures.

``import dsconvert`` is cheap: torch is imported when a name is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dsconvert.util.earlier_names import install
from dsconvert.util.version import VERSION

if TYPE_CHECKING:
    from dsconvert.core.analysis import Analysis, analyse
    from dsconvert.core.pipeline import (
        apply,
        convert,
        cost,
        merge,
        plan,
    )
    from dsconvert.data.array_inputs import array_inputs
    from dsconvert.data.picture_inputs import picture_inputs
    from dsconvert.errors import DsconvertError
    from dsconvert.export import load_export
    from dsconvert.formats.base import ModuleSource
    from dsconvert.formats.convert_file import (
        convert_file,
        plan_file,
    )
    from dsconvert.formats.export_file import export_model, load_generator
    from dsconvert.formats.official import (
        Snapshot,
        inspect_snapshot,
        load_snapshot,
        new_snapshot,
        save_snapshot,
    )
    from dsconvert.formats.registry import inspect_file, open_file
    from dsconvert.formats.save_file import save_file
    from dsconvert.forms import deploy, lean
    from dsconvert.hub import from_pretrained, save_pretrained
    from dsconvert.records import Conversion, Cost, Plan
    from dsconvert.util.allocator import keep_freed_memory
    from dsconvert.web import write_page

__version__ = VERSION
install()

_HOMES = {
    "dsconvert.errors": ("DsconvertError",),
    "dsconvert.records": ("Conversion", "Cost", "Plan"),
    "dsconvert.core.analysis": ("Analysis", "analyse"),
    "dsconvert.core.pipeline": (
        "apply",
        "convert",
        "cost",
        "merge",
        "plan",
    ),
    "dsconvert.data.array_inputs": ("array_inputs",),
    "dsconvert.data.picture_inputs": ("picture_inputs",),
    "dsconvert.export": ("load_export",),
    "dsconvert.forms": ("deploy", "lean"),
    "dsconvert.hub": ("from_pretrained", "save_pretrained"),
    "dsconvert.web": ("write_page",),
    "dsconvert.formats.base": ("ModuleSource",),
    "dsconvert.formats.convert_file": (
        "convert_file",
        "plan_file",
    ),
    "dsconvert.formats.export_file": ("export_model", "load_generator"),
    "dsconvert.util.allocator": ("keep_freed_memory",),
    "dsconvert.formats.registry": ("inspect_file", "open_file"),
    "dsconvert.formats.save_file": ("save_file",),
    "dsconvert.formats.official": (
        "Snapshot",
        "inspect_snapshot",
        "load_snapshot",
        "new_snapshot",
        "save_snapshot",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Analysis",
    "Conversion",
    "Cost",
    "DsconvertError",
    "ModuleSource",
    "Plan",
    "Snapshot",
    "analyse",
    "apply",
    "array_inputs",
    "convert",
    "convert_file",
    "cost",
    "deploy",
    "export_model",
    "from_pretrained",
    "inspect_file",
    "inspect_snapshot",
    "keep_freed_memory",
    "lean",
    "load_export",
    "load_generator",
    "load_snapshot",
    "merge",
    "new_snapshot",
    "open_file",
    "picture_inputs",
    "plan",
    "plan_file",
    "save_file",
    "save_pretrained",
    "save_snapshot",
    "write_page",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'dsconvert' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)
