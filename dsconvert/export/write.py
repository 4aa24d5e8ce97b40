"""Write a model as a graph: beside the target, load it again, compare the images, then rename."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from dsconvert.config.choices import SUFFIXES, ExportDtype, Noise
from dsconvert.errors import (
    DsconvertError,
    ExportError,
    ForeignFileError,
    UsageError,
)
from dsconvert.export.coreml import KIND, quiet, write_coreml
from dsconvert.export.diagnose import blame
from dsconvert.export.graphs import GRAPHS, OUTPUT, GraphFormat, Run, need
from dsconvert.export.reduced import Sampled, reduce_onnx
from dsconvert.export.tensorrt import check_card
from dsconvert.forms.flat_graph import Core, draw, flatten
from dsconvert.forms.verify import BATCHES, compare
from dsconvert.model.inputs import Inputs, examples_of
from dsconvert.model.observe import evaluating
from dsconvert.records import Export
from dsconvert.util.files import check_target, whole_files
from dsconvert.util.first_line import typed_line
from dsconvert.util.folders import check_new_folder, whole_folder

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from torch import nn

COREML = "coreml"
_T = TypeVar("_T")


def check_graph(path: str | os.PathLike[str], name: str, *, overwrite: bool) -> None:
    """Check that :func:`export_graph` can write the format ``name`` to ``path``.

    Raises:
        UsageError: the format needs hardware that is not here.
        MissingExtraError: a library that the format needs is not installed.
        OutputError: the file may not be written.
    """
    if name == "tensorrt":
        check_card()
    if name == COREML:
        with quiet():
            need(name, "coremltools")
        check_new_folder(path, kind=KIND, overwrite=overwrite)
        return
    need(name, *GRAPHS[name].needs)
    check_target(path, overwrite=overwrite)
    if name == "openvino":
        check_target(Path(path).with_suffix(".bin"), overwrite=overwrite)


def export_graph(
    model: nn.Module,
    target: Path,
    name: str,
    *,
    noise: Noise = "random",
    seed: int = 0,
    overwrite: bool = False,
    inputs: Inputs | None = None,
    noise_types: tuple[type[nn.Module], ...] = (),
    dtype: ExportDtype = "fp32",
    least_psnr: float = 30.0,
) -> Export:
    """Write ``model`` in the graph format ``name``; load it again and compare the images.

    Args:
        model: a generator, converted or not; left as it was.
        target: the file.
        name: a key of :data:`dsconvert.export.graphs.GRAPHS`, or ``coreml``.
        noise: ``random``: an input ``noise`` (N, K) of normal numbers; ``fixed``: built in;
            ``zero``: none.
        seed: of the fixed noise.
        overwrite: whether ``target`` may exist.
        inputs: ``inputs(n, generator)`` returns the arguments of one call with batch n; needed
            where no adapter knows the model.
        noise_types: classes that add freshly drawn noise, besides the adapter's.
        dtype: of the weights; other than ``fp32`` for ONNX alone.
        least_psnr: the limit in dB of such a graph's images to the model's (of sounds: of the
            signal-to-noise ratio).

    Raises:
        UsageError: the inputs are unknown.
        OutputError: the file can't be written.
        TraceError: the model can't be traced.
        ExportError: the format can't hold the model, or the export, loaded again, makes other
            images, or misses ``least_psnr``. Nothing is written then.
    """
    began = time.perf_counter()
    core = flatten(
        model,
        examples_of(model, inputs),
        other=examples_of(model, inputs, n=2),
        noise=noise,
        seed=seed,
        noise_types=noise_types,
    )
    # Core ML's shapes are fixed; the other programs are traced with one batch and have any.
    args = _args(model, core, inputs, 1 if name == COREML else BATCHES[0])
    reduced = None
    if name == COREML:
        with whole_folder(target, kind=KIND, overwrite=overwrite) as folder:
            _written(name, model, core, args, lambda: write_coreml(core, args, folder, OUTPUT))
            size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
        with evaluating(core.module):
            reach = float(core.module(*args).abs().max())
        files, error = (str(target),), None
    else:
        fmt = GRAPHS[name]
        with whole_files(target, overwrite=overwrite) as beside:
            made = _written(name, model, core, args, lambda: fmt.write(core, args, beside))
            error, reach = compare(
                model,
                core,
                _opened(fmt, made[0], str(target)),
                str(target),
                inputs=inputs,
                noise_types=noise_types,
            )
            if dtype != "fp32":
                reduced = reduce_onnx(
                    made,
                    dtype,
                    sampled=Sampled(model, core, inputs, noise_types),
                    open_graph=lambda path: _opened(fmt, path, str(target)),
                    least_psnr=least_psnr,
                    what=str(target),
                )
                made = made[:1]
            size = sum(f.stat().st_size for f in made)
        files = tuple(str(target.parent / f.name) for f in made)
    return Export(
        path=str(target),
        format=name,
        files=files,
        bytes=size,
        inputs={
            k: ("batch" if core.is_batched(k) and name != COREML else a.shape[0], *a.shape[1:])
            for k, a in zip(core.inputs, args, strict=True)
        },
        noise=noise,
        planes=tuple((p.module, p.height, p.width) for p in core.planes) if noise != "zero" else (),
        error=error if reduced is None else reduced.error,
        range=reach,
        batches=() if error is None else BATCHES,
        seconds=time.perf_counter() - began,
        dtype=dtype,
        psnr=None if reduced is None else reduced.psnr,
        snr=None if reduced is None else reduced.snr,
        activation_bits=32 if reduced is None else reduced.activation_bits,
    )


def _args(model: nn.Module, core: Core, inputs: Inputs | None, n: int) -> tuple[torch.Tensor, ...]:
    args = list(core.select(examples_of(model, inputs, n=n)))
    if core.takes_noise:
        args.append(draw(core.planes, n).to(args[0].device, core.dtype))
    return tuple(args)


def _written(
    name: str,
    model: nn.Module,
    core: Core,
    args: tuple[torch.Tensor, ...],
    write: Callable[[], _T],
) -> _T:
    try:
        return write()
    except (DsconvertError, OSError, KeyboardInterrupt):
        raise
    except Exception as error:  # exporters raise anything; name the operator and its module
        raise blame(name, model, core, args, error) from error


def _opened(fmt: GraphFormat, path: Path, what: str) -> Run:
    try:
        return fmt.open(path, None)
    except Exception as error:  # each runtime has errors of its own
        raise ExportError(
            f"{what} can't be loaded again: {typed_line(error)}. Nothing was written; export to "
            "another format."
        ) from error


def load_export(path: str | os.PathLike[str], *, threads: int | None = None) -> Run:
    """Open an exported graph to run it: a function from its inputs, as tensors, to images.

    Args:
        path: a file that :func:`dsconvert.export_model` wrote (``.onnx``, ``.pt2`` or ``.xml``).
        threads: CPU threads; None: the runtime's choice.

    Raises:
        UsageError: the suffix is none of these.
        MissingExtraError: a library that runs the format is not installed.
        ForeignFileError: the file is missing, or can't be read.
    """
    suffix = Path(path).suffix.lower()
    fmt = GRAPHS.get(SUFFIXES.get(suffix, ""))
    if fmt is None:
        raise UsageError(
            f"{path} is no exported graph: its name ends in none of "
            f"{', '.join(s for s, f in SUFFIXES.items() if f in GRAPHS)}. To load a generator from "
            "a safetensors file or a snapshot, use dsconvert.load_generator."
        )
    need(fmt.name, *fmt.needs)
    if not Path(path).is_file():
        raise ForeignFileError(f"there is no file {path}; mend the name.")
    try:
        return fmt.open(Path(path), threads)
    except Exception as error:  # each runtime has errors of its own
        raise ForeignFileError(f"can't open {path}: {typed_line(error)}.") from error
