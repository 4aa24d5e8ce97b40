"""Exporting a generator: write beside the target, load again, compare, then rename."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dsconvert.config.choices import FORMATS, NOISES, Noise
from dsconvert.errors import (
    DsconvertError,
    ExportError,
    ForeignFileError,
    UsageError,
)
from dsconvert.export.diagnose import blame
from dsconvert.export.formats import GRAPHS, Format, Run, need
from dsconvert.formats.official import load_snapshot
from dsconvert.formats.safetensors.file import load_plain, save_plain
from dsconvert.forms.flat_graph import Core, draw, flatten
from dsconvert.forms.inputs import Inputs, examples_of
from dsconvert.forms.verify import BATCHES, compare, first_line
from dsconvert.model.observe import undisturbed
from dsconvert.model.wrappers import unwrapped
from dsconvert.records import Export
from dsconvert.util.files import check_target, whole_files

if TYPE_CHECKING:
    import os

    from torch import nn

SUFFIXES = {f.suffix: f.name for f in GRAPHS.values()} | {".safetensors": "safetensors"}


def format_of(path: str | os.PathLike[str], name: str | None) -> str:
    """The format that is named, or that the file's suffix stands for.

    Raises:
        UsageError: unknown, or neither says which.
    """
    suffix = Path(path).suffix.lower()
    if name is None:
        if suffix not in SUFFIXES:
            raise UsageError(
                f"{path} does not say which format is wanted; name one of {', '.join(FORMATS)}."
            )
        return SUFFIXES[suffix]
    if name not in FORMATS:
        raise UsageError(f"no format is called {name!r}; choose {', '.join(FORMATS)}.")
    wanted = next(s for s, f in SUFFIXES.items() if f == name)
    if suffix != wanted:
        raise UsageError(f"a file of the format {name} is called *{wanted}, not {Path(path).name}.")
    return name


def check_export(
    path: str | os.PathLike[str],
    format: str | None,  # noqa: A002 - the command line's word
    *,
    noise: str,
    overwrite: bool,
) -> str:
    """What can be found out before any work; returns the format.

    Raises:
        UsageError: an unknown format or noise.
        MissingExtraError: what the format needs is not installed.
        OutputError: the file may not be written.
    """
    name = format_of(path, format)
    if noise not in NOISES:
        raise UsageError(f"no noise is called {noise!r}; choose {', '.join(NOISES)}.")
    if name == "safetensors":
        need(name, "safetensors")
        if noise == "fixed":
            raise UsageError(
                "safetensors holds the generator itself, which draws its own noise: --noise is "
                "random or zero there, not fixed."
            )
    else:
        need(name, *GRAPHS[name].needs)
    check_target(path, overwrite=overwrite)
    if name == "openvino":
        check_target(Path(path).with_suffix(".bin"), overwrite=overwrite)
    return name


def export_model(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    format: str | None = None,  # noqa: A002 - the command line's word
    noise: Noise = "random",
    seed: int = 0,
    overwrite: bool = False,
    inputs: Inputs | None = None,
    noise_types: tuple[type[nn.Module], ...] = (),
) -> Export:
    """Write ``model`` to another format; load it again and compare the images.

    ``onnx`` (through ``torch.onnx``), ``torch`` (a ``torch.export`` program, which unlike
    TorchScript has a future, needs no dsconvert to run, and whose graph is checked when loaded)
    and ``openvino`` hold a graph with a free batch size, with norms and batch normalisation folded.
    ``safetensors`` holds the generator itself, for :func:`dsconvert.load_generator`.

    Args:
        model: a generator, converted or not; left as it was.
        path: ends in ``.onnx``, ``.pt2``, ``.xml`` (a ``.bin`` goes beside it) or ``.safetensors``.
        format: by its name; None: what the suffix says.
        noise: ``random``: an input ``noise`` (N, K) of normal numbers; ``fixed``: built in;
            ``zero``: none.
        seed: of the fixed noise.
        overwrite: whether ``path`` may exist.
        inputs: ``inputs(n, generator)`` returns the arguments of one call with batch n; needed
            where no adapter knows the model.
        noise_types: classes that add freshly drawn noise, besides the adapter's.

    Raises:
        UsageError: an unknown format or noise, or nothing says what the inputs look like.
        MissingExtraError: what the format needs is not installed.
        OutputError: the file can't be written.
        TraceError: the model can't be traced.
        ExportError: the model holds what the format can't, or the export, loaded again, makes
            other images. Nothing is written then.
    """
    name = check_export(path, format, noise=noise, overwrite=overwrite)
    target, model = Path(path), unwrapped(model)
    with undisturbed():
        if name == "safetensors":
            return save_plain(model, target, noise=noise, overwrite=overwrite, inputs=inputs)
        return _graph(
            model,
            target,
            GRAPHS[name],
            noise=noise,
            seed=seed,
            overwrite=overwrite,
            inputs=inputs,
            noise_types=noise_types,
        )


def _graph(
    model: nn.Module,
    target: Path,
    fmt: Format,
    *,
    noise: Noise,
    seed: int,
    overwrite: bool,
    inputs: Inputs | None,
    noise_types: tuple[type[nn.Module], ...],
) -> Export:
    began = time.perf_counter()
    core = flatten(
        model,
        examples_of(model, inputs),
        other=examples_of(model, inputs, n=2),
        noise=noise,
        seed=seed,
        noise_types=noise_types,
    )
    args = _args(model, core, inputs)
    with whole_files(target, overwrite=overwrite) as beside:
        files = _written(fmt, model, core, args, beside)
        error, reach = compare(
            model,
            core,
            _opened(fmt, files[0], str(target)),
            str(target),
            inputs=inputs,
            noise_types=noise_types,
        )
        size = sum(f.stat().st_size for f in files)
    return Export(
        path=str(target),
        format=fmt.name,
        files=tuple(str(target.parent / f.name) for f in files),
        bytes=size,
        inputs={
            k: ("batch", *a.shape[1:]) if core.is_batched(k) else tuple(a.shape)
            for k, a in zip(core.inputs, args, strict=True)
        },
        noise=noise,
        planes=tuple((p.module, p.height, p.width) for p in core.planes) if noise != "zero" else (),
        error=error,
        range=reach,
        batches=BATCHES,
        seconds=time.perf_counter() - began,
    )


def _args(model: nn.Module, core: Core, inputs: Inputs | None) -> tuple[torch.Tensor, ...]:
    args = list(core.select(examples_of(model, inputs, n=BATCHES[0])))
    if core.takes_noise:
        args.append(draw(core.planes, BATCHES[0]).to(args[0].device, core.dtype))
    return tuple(args)


def _written(
    fmt: Format, model: nn.Module, core: Core, args: tuple[torch.Tensor, ...], path: Path
) -> tuple[Path, ...]:
    try:
        return fmt.write(core, args, path)
    except (DsconvertError, OSError, KeyboardInterrupt):
        raise
    except Exception as error:  # whatever an exporter says: a name and a place are wanted
        raise blame(fmt.name, model, core, args, error) from error


def _opened(fmt: Format, path: Path, what: str) -> Run:
    try:
        return fmt.open(path, None)
    except Exception as error:  # each runtime has errors of its own
        raise ExportError(
            f"{what} can't be loaded again: {first_line(error)}. Nothing was written; export to "
            "another format."
        ) from error


def load_export(path: str | os.PathLike[str], *, threads: int | None = None) -> Run:
    """Open an exported graph to run it: a function from its inputs, as tensors, to images.

    Args:
        path: a file that :func:`export_model` wrote (``.onnx``, ``.pt2`` or ``.xml``).
        threads: CPU threads; None: the runtime's choice.

    Raises:
        UsageError: the suffix is none of these.
        MissingExtraError: what runs the format is not installed.
        ForeignFileError: the file is missing, or can't be read.
    """
    name = format_of(path, None)
    if name not in GRAPHS:
        raise UsageError(f"{path} holds a generator, not a graph: use dsconvert.load_generator.")
    fmt = GRAPHS[name]
    need(name, *fmt.needs)
    if not Path(path).is_file():
        raise ForeignFileError(f"there is no file {path}; mend the name.")
    try:
        return fmt.open(Path(path), threads)
    except Exception as error:  # each runtime has errors of its own
        raise ForeignFileError(f"can't open {path}: {first_line(error)}.") from error


def load_generator(path: str | os.PathLike[str]) -> nn.Module:
    """The generator of a file: ``G_ema`` of a snapshot, or what a safetensors export holds.

    Returns:
        a plain module, in eval mode, without gradients. Nothing in the file is executed.

    Raises:
        SnapshotError: the file can't be read as either.
        MissingExtraError: it is a safetensors file, and safetensors is not installed.
    """
    if Path(path).suffix.lower() == ".safetensors":
        return load_plain(path)
    return load_snapshot(path).generator.eval().requires_grad_(False)
