"""Module names of earlier versions, which scripts and pickled deployed generators still use."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "dsconvert.allocator": "dsconvert.util.allocator",
    "dsconvert.export.deploy": "dsconvert.forms.deployed",
    "dsconvert.export.graph": "dsconvert.forms.flat_graph",
    "dsconvert.export.layers": "dsconvert.forms.layers",
    "dsconvert.export.packed": "dsconvert.forms.packed",
    "dsconvert.images": "dsconvert.data.pictures",
    "dsconvert.restructure": "dsconvert.formats.restructure",
    "dsconvert.train.config": "dsconvert.config.train",
    "dsconvert.train.data": "dsconvert.data.images",
    "dsconvert.train.distill": "dsconvert.distill",
    "dsconvert.train.stream": "dsconvert.data.stream",
}
"""The documented ones, and those that pickles name. The modules in a package move with it."""


class EarlierNames(MetaPathFinder, Loader):
    """Import a module of :data:`MOVED` by its earlier name; it is the same module object."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - the import system passes it
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        """See :class:`importlib.abc.MetaPathFinder`."""
        return ModuleSpec(fullname, self) if _now(fullname) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module under its present name."""
        name = _now(spec.name)
        warnings.warn(f"{spec.name} is {name} now", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(str(name))
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Give the module the spec back that the import system has just replaced."""
        module.__spec__ = self._spec


def _now(name: str) -> str | None:
    if not name.startswith("dsconvert."):
        return None  # every import of the process asks: leave the others alone at once
    for earlier, now in MOVED.items():
        if name == earlier or name.startswith(f"{earlier}."):
            return now + name[len(earlier) :]
    return None


def install() -> None:
    """Let the earlier names be imported; a second call changes nothing."""
    if not any(isinstance(finder, EarlierNames) for finder in sys.meta_path):
        sys.meta_path.insert(0, EarlierNames())
