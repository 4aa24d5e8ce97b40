"""Export a generator, of a file or in memory, to a format that holds it alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from dsconvert.config.choices import EXPORT_DTYPES, FORMATS, NOISES, SUFFIXES, ExportDtype, Noise
from dsconvert.errors import UsageError
from dsconvert.export import check_graph, export_graph
from dsconvert.export.graphs import need
from dsconvert.formats.official import load_snapshot
from dsconvert.formats.registry import load_safetensors
from dsconvert.formats.safetensors import save_plain
from dsconvert.formats.seeds import unknown_inputs
from dsconvert.model.inputs import Inputs, RandomPixels, needs_pictures
from dsconvert.model.observe import undisturbed
from dsconvert.model.wrappers import unwrapped
from dsconvert.records import Export
from dsconvert.util.files import check_target

if TYPE_CHECKING:
    import os

    from dsconvert.formats.base import GeneratorFile

PLAIN = "safetensors"
_FOLDERS = {"page": "write_page", "hub": "save_pretrained"}
"""The formats that are folders of several files, and the functions that write them."""


def _format_of(path: str | os.PathLike[str], name: str | None) -> str:
    suffix = Path(path).suffix.lower()
    if name is None:
        if suffix not in SUFFIXES:
            raise UsageError(
                f"{path} does not say which format is wanted; end it in {', '.join(SUFFIXES)}, or "
                f"name a format: {', '.join(FORMATS)}."
            )
        return SUFFIXES[suffix]
    if name in _FOLDERS:
        raise UsageError(f"the format {name} is a folder: dsconvert.{_FOLDERS[name]} writes it.")
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
    dtype: str = "fp32",
) -> str:
    """Check everything about an export that can be checked before any work.

    Returns:
        the name of the format: the given one, or else that of the suffix of ``path``.

    Raises:
        UsageError: an unknown format, noise or dtype, or one that the format does not have.
        MissingExtraError: a library that the format needs is not installed.
        OutputError: the file may not be written.
    """
    name = _format_of(path, format)
    if dtype not in EXPORT_DTYPES:
        raise UsageError(f"no dtype is called {dtype!r}; choose {', '.join(EXPORT_DTYPES)}.")
    if dtype != "fp32" and name != "onnx":
        raise UsageError(
            f"--dtype {dtype} is for ONNX, whose error onnxruntime measures here; the format "
            f"{name} is written as fp32: leave --dtype out, or name a .onnx."
        )
    if noise not in NOISES:
        raise UsageError(f"no noise is called {noise!r}; choose {', '.join(NOISES)}.")
    if name != PLAIN:
        check_graph(path, name, overwrite=overwrite)
        return name
    need(name, PLAIN)
    if noise == "fixed":
        raise UsageError(
            "safetensors holds the generator itself, which draws its own noise: --noise is "
            "random or zero there, not fixed."
        )
    check_target(path, overwrite=overwrite)
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
    dtype: ExportDtype = "fp32",
    least_psnr: float = 30.0,
) -> Export:
    """Write ``model`` to another format; load it again and compare the images.

    ``onnx`` (through ``torch.onnx``), ``torch`` (a ``torch.export`` program, which unlike
    TorchScript has a future, needs no dsconvert to run, and whose graph is checked when loaded)
    and ``openvino`` hold a graph with a free batch size, with norms and batch normalisation folded.
    ``safetensors`` holds the generator itself, for :func:`dsconvert.load_generator`.

    Args:
        model: a generator, converted or not; left as it was.
        path: ends in ``.onnx``, ``.pt2``, ``.xml`` (a ``.bin`` goes beside it), ``.mlpackage``,
            ``.ep`` (TensorRT; where a GPU is) or ``.safetensors``.
        format: by its name; None: the format of the suffix.
        noise: ``random``: an input ``noise`` (N, K) of normal numbers; ``fixed``: built in;
            ``zero``: none.
        seed: of the fixed noise.
        overwrite: whether ``path`` may exist.
        inputs: ``inputs(n, generator)`` returns the arguments of one call with batch n; needed
            where no adapter knows the model.
        noise_types: classes that add freshly drawn noise, besides the adapter's.
        dtype: of the weights of an ONNX file: ``fp32``, ``fp16`` or ``int8``, calibrated by inputs
            as a fit uses them.
        least_psnr: the limit in dB of such a file's images to the model's.

    Raises:
        UsageError: an unknown format or noise, or the inputs are unknown.
        MissingExtraError: a library that the format needs is not installed.
        OutputError: the file can't be written.
        TraceError: the model can't be traced.
        ExportError: the format can't hold the model, or the export, loaded again, makes other
            images. Nothing is written then.
    """
    name = check_export(path, format, noise=noise, overwrite=overwrite, dtype=dtype)
    target, model = Path(path), unwrapped(model)
    with undisturbed():
        if name == PLAIN:
            return save_plain(model, target, noise=noise, overwrite=overwrite, inputs=inputs)
        return export_graph(
            model,
            target,
            name,
            noise=noise,
            seed=seed,
            overwrite=overwrite,
            inputs=inputs,
            noise_types=noise_types,
            dtype=dtype,
            least_psnr=least_psnr,
        )


def export_file(
    file: GeneratorFile,
    path: str | os.PathLike[str],
    *,
    format: str | None = None,  # noqa: A002 - the command line's word
    noise: Noise = "random",
    seed: int = 0,
    overwrite: bool = False,
    model: nn.Module | None = None,
    dtype: ExportDtype = "fp32",
    least_psnr: float = 30.0,
) -> Export:
    """Write the main generator of a file to another format; load it again and compare the images.

    The arguments are those of :func:`dsconvert.export_model`. How safetensors holds the
    architecture depends on the file: see :meth:`GeneratorFile.save_safetensors`.

    Args:
        file: an opened file.
        path: the file to write.
        format: by its name; None: the format of the suffix.
        noise: random, fixed or zero.
        seed: of the fixed noise.
        overwrite: whether ``path`` may exist.
        model: the model to write instead of the file's own generator (a converted one).
        dtype: of the weights of an ONNX file.
        least_psnr: the limit in dB of such a file's images to the model's.

    Raises:
        DsconvertError: as for :func:`dsconvert.export_model`; also where the inputs of the
            generator are unknown.
    """
    name = check_export(path, format, noise=noise, overwrite=overwrite, dtype=dtype)
    model = unwrapped(file.generator if model is None else model)
    inputs = file.inputs()
    if inputs is None:
        raise UsageError(unknown_inputs(file.path))
    with undisturbed():
        if name == PLAIN:
            return file.save_safetensors(model, Path(path), noise=noise, overwrite=overwrite)
        if dtype != "fp32" and isinstance(inputs, RandomPixels):
            raise UsageError(f"{needs_pictures(f'the generator of {file.path}', inputs)}.")
        return export_graph(
            model,
            Path(path),
            name,
            noise=noise,
            seed=seed,
            overwrite=overwrite,
            inputs=inputs,
            dtype=dtype,
            least_psnr=least_psnr,
        )


def load_generator(path: str | os.PathLike[str]) -> nn.Module:
    """Load the generator of a file: ``G_ema`` of a snapshot, or that of a safetensors export.

    Returns:
        a plain module, in eval mode, without gradients, in float32 also where the file holds half
        precision. Nothing in the file is executed.

    Raises:
        SnapshotError: the file can't be read as either.
        MissingExtraError: it is a safetensors file, and safetensors is not installed.
    """
    if Path(path).suffix.lower() == ".safetensors":
        return load_safetensors(Path(path))
    return load_snapshot(path).generator.eval().requires_grad_(False)
