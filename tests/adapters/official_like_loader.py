"""Loads a ``torch_utils.persistence`` file as the official loader does, in a bare process.

Run as a script: FILE INPUTS OUT [KEY]. Nothing of dsconvert can be imported. The stand-in for
``torch_utils.persistence`` executes the embedded text in a module of its own, as the official one
does; the opt-in tests use the real one.
"""

from __future__ import annotations

import pickle
import sys
import types
from typing import Any

import torch


class _Blocked:
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.split(".")[0].startswith("dsconvert"):
            raise ImportError(f"{name} is not installed here")


def _reconstruct_persistent_obj(meta: dict[str, Any]) -> Any:
    assert meta["version"] == 6
    assert meta["type"] == "class"
    known = _MODULES.get(meta["module_src"])
    if known is None:
        known = _MODULES[meta["module_src"]] = types.ModuleType(f"_imported_{len(_MODULES)}")
        sys.modules[known.__name__] = known
        exec(meta["module_src"], known.__dict__)
    kind = known.__dict__[meta["class_name"]]
    made = kind.__new__(kind)
    made.__setstate__(meta["state"])
    return made


_MODULES: dict[str, types.ModuleType] = {}


def main() -> None:
    file, inputs, out, *rest = sys.argv[1:]
    sys.meta_path.insert(0, _Blocked())  # type: ignore[arg-type]
    sys.path[:] = [p for p in sys.path if "dsconvert" not in p]
    persistence = types.ModuleType("torch_utils.persistence")
    persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
    sys.modules["torch_utils"] = types.ModuleType("torch_utils")
    sys.modules["torch_utils.persistence"] = persistence
    with open(file, "rb") as stream:  # noqa: PTH123
        data = pickle.load(stream)
    assert all(isinstance(data[k], torch.nn.Module) for k in ("G", "D", "G_ema"))
    given = torch.load(inputs, weights_only=True)
    g = data[rest[0] if rest else "G_ema"].eval()
    with torch.no_grad():
        torch.save(g(given["z"], given["c"], noise_mode="const"), out)


if __name__ == "__main__":
    main()
