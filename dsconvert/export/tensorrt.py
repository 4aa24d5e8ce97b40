"""TensorRT, through torch-tensorrt: only where an NVIDIA GPU is, for which the engine is built."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dsconvert.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dsconvert.forms.flat_graph import Core


def check_card() -> None:
    """Check that there is a GPU to build an engine for.

    Raises:
        UsageError: torch finds none.
    """
    if not torch.cuda.is_available():
        raise UsageError(
            "the format tensorrt needs an NVIDIA GPU, for which its engine is built, and torch "
            "finds none here: run this command on the machine that has one, or export to onnx."
        )


def write_tensorrt(
    program: torch.export.ExportedProgram, args: tuple[Tensor, ...], path: Path
) -> tuple[Path, ...]:
    """Write a program as an exported program with TensorRT engines (float32 without TF32)."""
    library: Any = import_module("torch_tensorrt")
    there = tuple(a.cuda() for a in args)
    made = library.dynamo.compile(
        program, arg_inputs=there, disable_tf32=True, enabled_precisions={torch.float32}
    )
    library.save(made, str(path), output_format="exported_program", arg_inputs=there)
    return (path,)


def open_tensorrt(path: Path, threads: int | None) -> Callable[..., Tensor]:  # noqa: ARG001
    """Open such a file to run it; tensors may be anywhere, images are on the CPU."""
    library: Any = import_module("torch_tensorrt")
    module = library.load(str(path)).module()

    def run(*tensors: Tensor) -> Tensor:
        with torch.no_grad():
            return module(*(t.cuda() for t in tensors)).cpu()

    return run


def core_on_card(core: Core) -> None:
    """Move the graph of ``core`` to the GPU."""
    core.module.cuda()
