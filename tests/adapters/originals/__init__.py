"""Small files in the layouts of other codebases, and the values that their own code makes of them.

Each ``NAME.json`` was written by ``python -m tests.adapters.originals.make NAME ROOT``, which runs
the unmodified original code: it holds the names and shapes of its state dict, and some values of
the output for the tensors of :func:`filled`. No tensor of a real model is in it.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsconvert import open_file

HERE = Path(__file__).parent


def expected(name: str) -> dict[str, Any]:
    """The cases of one codebase."""
    return json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))


def tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    """Values that depend on the name alone, in a range that keeps a network alive."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    last = name.rpartition(".")[2]
    if last == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.int64)
    if "var" in last or last == "weight_g":
        return 0.5 + torch.rand(shape, generator=generator)
    values = torch.randn(shape, generator=generator)
    if last == "gamma":
        return torch.full(shape, 0.7)
    if last in ("gain", "weight") and len(shape) == 1:
        return 1 + 0.1 * values
    if len(shape) < 2 and last not in ("weight_u", "weight_v"):
        return 0.1 * values
    if last.startswith("weight_u") or last == "weight_v":
        return values / values.norm() if len(shape) == 1 else values
    return values if last.strip("0123456789") == "u" else values / math.sqrt(math.prod(shape[1:]))


def filled(shapes: Mapping[str, list[int]]) -> dict[str, Tensor]:
    """A state dict of those names and shapes."""
    return {name: tensor(name, tuple(shape)) for name, shape in shapes.items()}


def some(output: Tensor) -> list[float]:
    """Forty values, spread over the whole output."""
    flat = output.detach().double().flatten()
    return [round(float(v), 6) for v in flat[:: max(1, len(flat) // 40)][:40]]


def written(folder: Path, name: str, case: str, saved: str, wrap: str | None = None) -> Path:
    """A file as the codebase ``name`` writes it, under ``wrap`` if that is given."""
    found = expected(name)[case]
    state = filled(found["shapes"])
    if "settings" in found:
        (folder / "config.json").write_text(json.dumps(found["settings"]))
    torch.save(state if wrap is None else {wrap: state}, folder / saved)
    return folder / saved


def settled(path: Path) -> Path:
    """The file after a few steps of its spectral norms; random ones make no finite image."""
    file = open_file(path)
    model, inputs = file.generator.train(), file.inputs()
    assert inputs is not None
    with torch.no_grad():
        for i in range(10):
            model(*inputs(2, torch.Generator().manual_seed(i)))
    # Not over the file itself, which is mapped into the memory of the model.
    torch.save(model.state_dict(), path.with_name("settled"))
    return path.with_name("settled").replace(path)
