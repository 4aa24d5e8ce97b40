"""Core ML: an ML program in an ``.mlpackage``, built and checked without a Mac.

Core ML runs on Apple's systems alone. Elsewhere the package is built, loaded again and its inputs,
output and types are compared with the model's; its images are not.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsconvert.errors import ExportError
from dsconvert.forms.flat_graph import Core
from dsconvert.model.inputs import fresh_args
from dsconvert.util.folders import FolderKind

KIND = FolderKind(
    mark="Manifest.json", key="rootModelIdentifier", names=("Manifest.json", "Data/*")
)
"""An ``.mlpackage`` is a folder."""


def write_coreml(core: Core, args: tuple[Tensor, ...], folder: Path, output: str) -> None:
    """Write a core as an ML program (float32, batch 1) into ``folder``.

    Args:
        core: the graph.
        args: its inputs, of batch 1: Core ML's compiler plans memory for fixed shapes.
        folder: an empty folder that becomes the ``.mlpackage``.
        output: the name of the image.

    Raises:
        ExportError: the package, loaded again, has other inputs or another output.
    """
    with quiet():
        tools: Any = import_module("coremltools")
        with torch.no_grad():
            program = torch.export.export(core.module, args, strict=False)
            wanted = core.module(*fresh_args(args))
        model = tools.convert(
            _known(program),
            outputs=[tools.TensorType(name=output)],
            minimum_deployment_target=tools.target.iOS16,
            compute_precision=tools.precision.FLOAT32,
            skip_model_load=True,
        )
        named = folder / "model.mlpackage"  # its writer insists on the suffix
        model.save(str(named))
        spec = tools.models.MLModel(str(named), skip_model_load=True).get_spec()
    for made in named.iterdir():
        made.rename(folder / made.name)
    named.rmdir()
    found = {i.name: tuple(i.type.multiArrayType.shape) for i in spec.description.input}
    expected = {k: tuple(a.shape) for k, a in zip(core.inputs, args, strict=True)}
    images = {o.name: tuple(o.type.multiArrayType.shape) for o in spec.description.output}
    if found != expected or images != {output: tuple(wanted.shape)}:
        raise ExportError(
            f"the Core ML package, loaded again, takes {found} and makes {images}, not {expected} "
            f"and {tuple(wanted.shape)}. Nothing was written; export to another format."
        )


def _known(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Return a program of operators that coremltools knows.

    Those are the core operators, and a few whose decomposition it reads badly or not at all. Then
    a default stride is written out, and copies that are none go.
    """
    operators = torch.ops.aten
    table = torch.export.default_decompositions()
    for operator in (operators.im2col.default, operators.reflection_pad2d.default):
        table.pop(operator, None)
    program = program.run_decompositions(table)
    graph = program.graph
    for node in list(graph.nodes):
        if node.target is operators.max_pool2d_with_indices.default and len(node.args) == 2:
            node.args = (*node.args, node.args[1])
        elif node.target is operators.alias.default:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    return program


@contextmanager
def quiet() -> Generator[None, None, None]:
    """Silence coremltools: its bars, and its notes that Apple's frameworks are not here."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
