"""The formats that hold a graph: a writer and a runner for each.

A format is two functions. ``write`` puts a :class:`~dsconvert.forms.flat_graph.Core` into files and
``open`` makes them a callable from tensors to images; both import their library when called. To add
a format, add an entry to ``GRAPHS``, and its name and suffix to ``dsconvert.config.choices``.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dsconvert.errors import MissingExtraError
from dsconvert.export.tensorrt import core_on_card, open_tensorrt, write_tensorrt
from dsconvert.util.extras import pip_install
from dsconvert.util.files import stream

if TYPE_CHECKING:
    from collections.abc import Generator

    from dsconvert.forms.flat_graph import Core

OUTPUT = "image"
_LARGEST_BATCH = 1 << 30
Run = Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True)
class GraphFormat:
    """One format of files that hold a graph."""

    name: str
    needs: tuple[str, ...]
    """Modules that must be importable."""
    write: Callable[[Core, tuple[Tensor, ...], Path], tuple[Path, ...]]
    """Writes a core, traced with the given inputs, to a path in an empty folder; returns all the
    files made, that of the path first."""
    open: Callable[[Path, int | None], Run]
    """Opens a file to run it, on a number of threads (None: the runtime's choice)."""


def need(fmt: str, *modules: str) -> None:
    """Check that ``modules`` can be imported.

    Raises:
        MissingExtraError: one is not installed.
    """
    missing: list[str] = []
    for name in modules:
        try:
            import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise MissingExtraError(
            f"the format {fmt} needs {', '.join(missing)}, which "
            f"{'is' if len(missing) == 1 else 'are'} not installed: {pip_install(fmt)}."
        )


@contextmanager
def _quiet() -> Generator[None, None, None]:
    """Silence the exporters' warnings about their own internals; the result is compared anyway."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def program(core: Core, args: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    """Return the core as a ``torch.export`` program with a free batch size."""
    # With a bound: torch 2.6 refuses an unbounded size that is compared with the largest integer.
    batch = torch.export.Dim("batch", max=_LARGEST_BATCH)
    with _quiet(), torch.no_grad():
        return torch.export.export(
            core.module,
            args,
            strict=False,  # the default of torch 2.7 and newer
            dynamic_shapes=tuple({0: batch} if core.is_batched(k) else None for k in core.inputs),
        )


def _write_torch(core: Core, args: tuple[Tensor, ...], path: Path) -> tuple[Path, ...]:
    facts = {"inputs": core.inputs, "noise": core.noise, "planes": _planes(core)}
    # torch checks the suffix of a path, and the caller writes to a temporary name: pass a stream.
    exported = program(core, args)
    with _quiet(), stream(path) as out:
        torch.export.save(exported, out, extra_files={"dsconvert.json": json.dumps(facts)})
    return (path,)


def _open_torch(path: Path, threads: int | None) -> Run:
    with _quiet(), path.open("rb") as file:
        module = torch.export.load(file).module()
    if threads is not None:
        torch.set_num_threads(threads)

    def run(*tensors: Tensor) -> Tensor:
        with torch.no_grad():
            return module(*tensors)

    return run


def whole_numbers(model: Any) -> None:
    """Write the flags of an ONNX model's nodes as the whole numbers that they are, in place.

    The exporter of torch 2.6 leaves Python's booleans, which protobuf 7 refuses.
    """
    for node in model.graph:
        for name, attribute in list(node.attributes.items()):
            if isinstance(value := getattr(attribute, "value", None), bool):
                node.attributes[name] = type(attribute)(name, attribute.type, int(value))


def _write_onnx(core: Core, args: tuple[Tensor, ...], path: Path) -> tuple[Path, ...]:
    with _quiet():
        made: Any = torch.onnx.export(
            program(core, args),
            args,
            input_names=list(core.inputs),
            output_names=[OUTPUT],
            dynamo=True,
            verbose=False,
        )
        model = made.model
        whole_numbers(model)
        model.metadata_props["dsconvert.noise"] = core.noise
        model.metadata_props["dsconvert.planes"] = json.dumps(_planes(core))
        made.save(str(path))
    # Where the weights are too many for one file (2 GB), they lie in another one beside it.
    return (path, *sorted(f for f in path.parent.iterdir() if f != path))


def _open_onnx(path: Path, threads: int | None) -> Run:
    ort: Any = import_module("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]

    def run(*tensors: Tensor) -> Tensor:
        feed = {k: t.detach().cpu().numpy() for k, t in zip(names, tensors, strict=True)}
        return torch.from_numpy(session.run(None, feed)[0])

    return run


def _write_openvino(core: Core, args: tuple[Tensor, ...], path: Path) -> tuple[Path, ...]:
    ov: Any = import_module("openvino")
    with _quiet():
        model = ov.convert_model(program(core, args), example_input=args)
    for port, name, tensor in zip(model.inputs, core.inputs, args, strict=True):
        port.get_tensor().set_names({name})
        port.get_node().set_friendly_name(name)
        if core.is_batched(name):
            port.get_node().set_partial_shape(ov.PartialShape([-1, *tensor.shape[1:]]))
    model.outputs[0].get_tensor().set_names({OUTPUT})
    model.validate_nodes_and_infer_types()
    model.set_rt_info(core.noise, "dsconvert_noise")
    model.set_rt_info(json.dumps(_planes(core)), "dsconvert_planes")
    # OpenVINO names the weights after the .xml, so that must carry its suffix here already.
    ov.save_model(model, str(path), compress_to_fp16=False)
    return (path, path.with_suffix(".bin"))


def _open_openvino(path: Path, threads: int | None) -> Run:
    ov: Any = import_module("openvino")
    # On some CPUs the default is bfloat16, which is another image.
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    compiled = ov.Core().compile_model(str(path), "CPU", options)

    def run(*tensors: Tensor) -> Tensor:
        result = compiled([t.detach().cpu().numpy() for t in tensors])
        return torch.from_numpy(result[0].copy())

    return run


def _write_tensorrt(core: Core, args: tuple[Tensor, ...], path: Path) -> tuple[Path, ...]:
    core_on_card(core)
    return write_tensorrt(program(core, tuple(a.cuda() for a in args)), args, path)


def _planes(core: Core) -> list[tuple[str, int, int]]:
    return [(p.module, p.height, p.width) for p in core.planes]


GRAPHS: dict[str, GraphFormat] = {
    f.name: f
    for f in (
        GraphFormat(
            name="onnx",
            needs=("onnx", "onnxscript", "onnxruntime"),
            write=_write_onnx,
            open=_open_onnx,
        ),
        GraphFormat(
            name="tensorrt",
            needs=("torch_tensorrt",),
            write=_write_tensorrt,
            open=open_tensorrt,
        ),
        GraphFormat(name="torch", needs=(), write=_write_torch, open=_open_torch),
        GraphFormat(
            name="openvino",
            needs=("openvino",),
            write=_write_openvino,
            open=_open_openvino,
        ),
    )
}
