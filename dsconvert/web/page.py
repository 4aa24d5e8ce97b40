"""Write the page: the graphs, the scripts, the facts, and one image that the browser checks."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from dsconvert.config.choices import ExportDtype, Noise
from dsconvert.core.pipeline import cost
from dsconvert.data.pictures import save_picture, to_images
from dsconvert.errors import ExportError, UsageError
from dsconvert.export import check_graph, load_export
from dsconvert.formats.alike import check_same_inputs
from dsconvert.formats.base import GeneratorFile
from dsconvert.formats.export_file import export_file
from dsconvert.records import Export
from dsconvert.util.folders import FolderKind, check_new_folder, whole_folder
from dsconvert.util.version import VERSION
from dsconvert.web import runtime as browser
from dsconvert.web.latents import check_drawable, inputs_of, page_arguments, range_of

MARK = "page.json"
_ASSETS = ("index.html", "page.css", "page.js", "numbers.js")
KIND = FolderKind(
    mark=MARK,
    key="dsconvert",
    names=(
        *(MARK, *_ASSETS, "runtime/*"),
        *(f"{model}{end}" for model in ("model", "original") for end in (".onnx", "-seed0.png")),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page that was written."""

    path: str
    models: tuple[Export, ...]
    """The converted generator, then the original."""
    bundled: bool
    """Whether the runtime is among its files, so that it works offline."""
    bytes: int


def check_page(path: str, *, overwrite: bool) -> None:
    """Check that a page can be written to the folder ``path``.

    Raises:
        MissingExtraError: a library that ONNX needs is not installed.
        OutputError: the folder may not be written.
    """
    check_new_folder(path, kind=KIND, overwrite=overwrite)
    check_graph(Path(path).parent / ".dsconvert-page.onnx", "onnx", overwrite=True)


def write_page(
    file: GeneratorFile,
    path: str,
    *,
    original: GeneratorFile | None = None,
    title: str | None = None,
    runtime: str | None = None,
    noise: Noise = "random",
    seed: int = 0,
    dtype: ExportDtype = "fp32",
    least_psnr: float = 30.0,
    overwrite: bool = False,
) -> Page:
    """Write a static page that runs the generator of ``file`` in a browser.

    Args:
        file: an opened file, of latents.
        path: the folder.
        original: the file that is shown beside it.
        title: of the page; None: the file's name.
        runtime: the npm package onnxruntime-web, which the page then contains; None: from a CDN.
        noise: as for :func:`dsconvert.export_model`; ``random`` draws it in the browser.
        seed: of the fixed noise.
        dtype: of the weights of ``file``; the original's are ``fp32``.
        least_psnr: see :func:`dsconvert.export_model`.
        overwrite: whether a page in that folder may be replaced.

    Raises:
        UsageError: the generators read pictures, have other latents than normal ones, or differ in
            their inputs.
        ForeignFileError: ``runtime`` is not that package, in the version that pages use.
        OutputError, ExportError: see :func:`dsconvert.export_model`.
    """
    check_page(path, overwrite=overwrite)
    check_drawable(file)
    files = {} if runtime is None else browser.read_runtime(runtime)
    if original is not None:
        check_same_inputs(file, original, otherwise="a page can't show them side by side")
    sources: list[tuple[str, GeneratorFile, ExportDtype]] = [("model.onnx", file, dtype)]
    if original is not None:
        sources.append(("original.onnx", original, "fp32"))
    with whole_folder(path, kind=KIND, overwrite=overwrite) as folder:
        made: list[Export] = []
        facts: list[dict[str, Any]] = []
        for name, source, kind in sources:
            one = export_file(
                source,
                folder / name,
                format="onnx",
                noise=noise,
                seed=seed,
                dtype=kind,
                least_psnr=least_psnr,
            )
            if len(one.files) > 1:
                raise ExportError(
                    f"a page can't show the generator of {source.path}: its weights "
                    f"({one.bytes / 1e9:.1f} GB) are too many for one ONNX file. Export a smaller "
                    "conversion of it, or to another format."
                )
            facts.append(_facts(source, one, folder, name))
            place = str(Path(path) / name)
            made.append(replace(one, path=place, files=(place,)))
        if len({tuple(f["image"]["shape"]) for f in facts}) > 1:
            raise UsageError(
                f"{file.path} and {original and original.path} make images of different sizes; "
                "name the original of the converted file."
            )
        for name in _ASSETS:
            text = (
                resources.files("dsconvert.web")
                .joinpath("assets")
                .joinpath(name)
                .read_text(encoding="utf-8")
            )
            (folder / name).write_text(text, encoding="utf-8")
        if files:
            (folder / "runtime").mkdir()
            for name, data in files.items():
                (folder / "runtime" / name).write_bytes(data)
            notice = browser.LICENSE.format(version=browser.VERSION)
            (folder / "runtime" / "LICENSE.txt").write_text(notice, encoding="utf-8")
        page = {
            "dsconvert": VERSION,
            "title": title or Path(file.path or "generator").name,
            "models": facts,
            "runtime": browser.described(bundled=bool(files)),
        }
        (folder / MARK).write_text(json.dumps(page, indent=1), encoding="utf-8")
        size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    return Page(path=path, models=tuple(made), bundled=bool(files), bytes=size)


def _facts(file: GeneratorFile, made: Export, folder: Path, name: str) -> dict[str, Any]:
    """Return the facts of one model; write the image of seed 0, by which the browser is checked."""
    inputs = inputs_of(file, made.inputs)
    values = range_of(file)
    image = load_export(folder / name)(*page_arguments(inputs, 0)).float()
    if values == "unit":
        image = image * 2 - 1
    checked = Path(name).stem + "-seed0.png"
    save_picture(to_images(image)[0], folder / checked)
    counted = cost(file.generator, inputs=file.inputs())
    return {
        "name": Path(file.path or name).name,
        "file": name,
        "check": checked,
        "bytes": made.bytes,
        "dtype": made.dtype,
        "psnr": made.psnr,
        "parameters": counted.params,
        "macs": counted.macs,
        "inputs": [asdict(each) for each in inputs],
        "image": {"shape": list(image.shape[1:]), "values": values},
    }
