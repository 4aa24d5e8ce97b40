"""Every export of every kind of file: its largest difference to PyTorch, or why it is refused.

    python benchmarks/export_matrix.py [--only GLOB] [--exports onnx,page] [--again]

Each cell is one run of ``dsconvert export`` on a small file (benchmarks/export_kinds.py; as its
codebase writes it, and converted). The file that it leaves is opened again by the program that it
is for (onnxruntime, OpenVINO, torch, dsconvert) and run beside PyTorch on inputs of its own, with
the noise at zero. The results, JSON and a table, are written after each cell; a run goes on
where the last one stopped. ``ok`` means at most 1e-3 of the largest pixel; of fewer bits, the PSNR
that the command reports.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import platform
import shutil
import tempfile
import time
import traceback
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from export_kinds import KINDS, ROOT, Kind, converted
from results_file import Results, Row
from torch import Tensor, nn

from dsconvert import deploy, from_pretrained, load_export, open_file
from dsconvert.adapter import image_tensor
from dsconvert.cli import main as dsconvert
from dsconvert.formats.base import GeneratorFile
from dsconvert.formats.given_inputs import with_calibration
from dsconvert.formats.safetensors.write import without_noise
from dsconvert.forms.call import call_of
from dsconvert.model.inputs import examples_of

EXPORTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "onnx": ("a.onnx", ()),
    "onnx fp16": ("a.onnx", ("--dtype", "fp16")),
    "onnx int8": ("a.onnx", ("--dtype", "int8")),
    "openvino": ("a.xml", ()),
    "torch.export": ("a.pt2", ()),
    "safetensors": ("a.safetensors", ()),
    "coreml": ("a.mlpackage", ()),
    "page": ("page/", ()),
    "hub": ("hub/", ("--format", "hub")),
    "deploy": ("", ()),
}
"""The path that ``--out`` names, and the other options."""
_CALIBRATED = ("onnx fp16", "onnx int8", "hub")
"""Exports for which a generator of pictures or sounds needs some."""
_FORMS = ("original", "converted")
_TOLERANCE = 1e-3
_TOOLS = (
    "torch", "onnx", "onnxscript", "onnxruntime", "openvino", "coremltools", "safetensors",
    "huggingface_hub", "spandrel",
)  # fmt: skip
_NEEDS = {
    "onnx": "onnxscript", "openvino": "openvino", "page": "onnxscript", "coreml": "coremltools",
    "safetensors": "safetensors", "hub": "safetensors",
}  # fmt: skip


class WrongImageError(Exception):
    """A file that was exported makes other images than the model."""


def _arguments(model: nn.Module, file: GeneratorFile) -> tuple[Any, ...]:
    return examples_of(model, file.inputs(), n=2, seed=77, adapter=file.adapter)


def _image(model: nn.Module, arguments: tuple[Any, ...]) -> Tensor:
    torch.manual_seed(0)
    with torch.no_grad():
        return image_tensor(model.eval()(*arguments), sounds=True).float()


def _silent(file: GeneratorFile) -> nn.Module:
    twin = copy.deepcopy(file.generator).requires_grad_(False)
    without_noise(twin, file.adapter)
    return twin


def _graph(out: Path, made: dict[str, Any], file: GeneratorFile) -> tuple[Tensor, Tensor]:
    """Return the images of a graph (in its own runtime) and of PyTorch, without noise."""
    model, names = _silent(file), list(made["inputs"])
    arguments = _arguments(model, file)
    call = call_of(model, arguments, None)
    every = call.select(call.given(*arguments), tuple(call.tensors))
    tensors = dict(zip(call.tensors, every, strict=True))
    given = [
        tensors[n] if n in tensors else torch.zeros(2, int(made["inputs"][n][1])) for n in names
    ]
    return load_export(out)(*given).float(), _image(model, arguments)


def _module(loaded: nn.Module, file: GeneratorFile) -> tuple[Tensor, Tensor]:
    """Return the images of a module that was loaded and of the original, with the same noise."""
    arguments = _arguments(file.generator, file)
    return _image(loaded, arguments), _image(file.generator, arguments)


def _same(made: Tensor, wanted: Tensor, tolerance: float = _TOLERANCE) -> tuple[float, float]:
    """Return the largest difference of a pixel, and the largest pixel.

    Raises:
        WrongImageError: the difference is above ``tolerance`` of the largest pixel.
    """
    if made.shape != wanted.shape:
        raise WrongImageError(f"shape {list(made.shape)}, not {list(wanted.shape)}")
    difference, reach = float((made - wanted).abs().max()), float(wanted.abs().max())
    if not difference <= tolerance * reach:
        raise WrongImageError(f"differs by {difference:.3g}, images reach {reach:.3g}")
    return difference, reach


def _compared(name: str, out: Path, made: dict[str, Any], kind: Kind, file: GeneratorFile) -> Row:
    """Open what was written by its own program, and compare its images with PyTorch's."""
    if name == "coreml":
        return {"state": "built"}
    if name == "deploy":
        images = _module(deploy(file.generator, adapter=file.adapter, inputs=file.inputs()), file)
    elif name == "safetensors":
        images = _module(open_file(out, module=kind.source).generator, file)
    elif name == "hub":
        images = _module(from_pretrained(out), file)
        _same(*_module(open_file(out / "model.safetensors").generator, file))
    elif name == "page":
        images = _graph(out / "model.onnx", made["models"][0], file)
    else:
        images = _graph(out, made, file)
    psnr = made.get("snr") if made.get("psnr") is None else made["psnr"]
    difference, reach = _same(*images, tolerance=_TOLERANCE if psnr is None else float("inf"))
    row: Row = {"state": "ok", "difference": difference, "reach": reach}
    if psnr is not None:
        row |= {"psnr": psnr, "activation_bits": made["activation_bits"]}
    return row


def _run(words: list[str]) -> tuple[int, str, str]:
    """Run the command; return its exit code, and what it wrote to the two streams."""
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = dsconvert(words)
    return code, out.getvalue(), " ".join(error.getvalue().split())


def cell(name: str, kind: Kind, path: Path, folder: Path, data: Path) -> Row:
    """Return the result of one export: its state is ok, built, refused, fault or absent."""
    needed = (*kind.needs, *(v for k, v in _NEEDS.items() if name.startswith(k)))
    missing = [n for n in needed if find_spec(n) is None]
    if missing:
        return {"state": "absent", "why": f"{', '.join(missing)} not installed here"}
    target, more = EXPORTS[name]
    out = folder / target
    known = kind.module is None and name not in _CALIBRATED
    given = [] if known else kind.calibration(data)
    began = time.process_time()
    row: Row
    try:
        file = open_file(path, module=kind.source)
        if given:
            file = with_calibration(file, data, crop=kind.crop, values=kind.values)  # type: ignore[arg-type]
        made: dict[str, Any] = {}
        if target:
            written = f"{out}/" if target.endswith("/") else str(out)
            words = ["export", str(path), "--out", written, *more, *kind.words(), *given]
            code, said, refused = _run([*words, "--json", "--quiet"])
            if code == 2:
                return {"state": "refused", "why": _anonymous(refused, folder, path)}
            if code:
                return {"state": "fault", "why": f"exit code {code}: {refused}"}
            made = json.loads(said)
        row = _compared(name, out, made, kind, file)
    except Exception as error:
        return _fault(error)
    return {**row, "cpu_seconds": round(time.process_time() - began, 2)}


def _fault(error: Exception) -> Row:
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(last.filename).name}:{last.lineno}"
    said = " ".join(str(error).split())[:300]
    return {"state": "fault", "why": f"{type(error).__name__}: {said} ({where})"}


def _anonymous(text: str, folder: Path, path: Path) -> str:
    """Return a message without the names of this run's folders."""
    return text.replace(f"{folder}/", "").replace(f"{path.parent}/", "").replace("dsconvert: ", "")


def _order(key: tuple[Any, ...]) -> tuple[int, ...]:
    kind, form, name = key
    return list(KINDS).index(kind), _FORMS.index(form), list(EXPORTS).index(name)


def _short(row: Row | None, notes: list[str]) -> str:
    if row is None:
        return ""
    state = row["state"]
    if state == "ok":
        if "psnr" not in row:
            return f"{row['difference']:.0e}".replace("e-0", "e-") if row["difference"] else "0"
        bits = "" if row["activation_bits"] == 8 else f" ({row['activation_bits']}-bit)"
        return f"{row['psnr']:.0f} dB{bits if 'int8' in row['export'] else ''}"
    if state in ("built", "absent"):
        return state
    why = f"{'**fault**: ' if state == 'fault' else ''}{row['why']}"
    if why not in notes:
        notes.append(why)
    return f"{'**fault**' if state == 'fault' else 'no'} {notes.index(why) + 1}"


def markdown(data: dict[str, Any]) -> str:
    """Return two tables, of converted files and of the originals, and the refusals' sentences."""
    found = {(r["kind"], r["form"], r["export"]): r for r in data["rows"]}
    tools = ", ".join(f"{k} {v}" for k, v in data["meta"]["versions"].items() if v)
    lines = [f"{tools}; `python benchmarks/export_matrix.py`.", ""]
    notes: list[str] = []
    for form in reversed(_FORMS):
        if not any(key[1] == form for key in found):
            continue
        heads = [f"{form} file", *EXPORTS]
        lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for kind in KINDS:
            cells = [_short(found.get((kind, form, name)), notes) for name in EXPORTS]
            lines.append(f"| {kind} | {' | '.join(cells)} |")
        lines.append("")
    lines += [f"{i}. {note}" for i, note in enumerate(notes, 1)]
    return "\n".join(lines) + "\n"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def main() -> None:
    """Run the cells that are missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="*", help="glob of kinds")
    parser.add_argument("--exports", default=",".join(EXPORTS))
    parser.add_argument("--forms", default=",".join(_FORMS))
    parser.add_argument("--again", action="store_true", help="run cells that are there, too")
    parser.add_argument("--faults", action="store_true", help="run faults and absent ones again")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/export_matrix.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    # Cells of packages that are absent now were made by earlier versions, which stay named.
    earlier: dict[str, str | None] = {}
    if options.out.exists():
        earlier = json.loads(options.out.read_text(encoding="utf-8"))["meta"]["versions"]
    meta = {
        "versions": {name: _version(name) or earlier.get(name) for name in _TOOLS},
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    results = Results(
        options.out, meta, same=(), names=("kind", "form", "export"), order=_order,
        markdown=markdown,
    )  # fmt: skip
    work = Path(tempfile.mkdtemp())
    try:
        for kind, form, name in _wanted(options, results):
            folder = work / f"{list(KINDS).index(kind)}"
            try:
                row = cell(name, KINDS[kind], *_files(KINDS[kind], form, folder))
            except Exception as error:  # of the making or the conversion of the file
                row = _fault(error)
            results.put({"kind": kind, "form": form, "export": name, **row})
            print(kind, form, name, row, flush=True)
    finally:
        shutil.rmtree(work)
    results.write()


def _wanted(options: argparse.Namespace, results: Results) -> list[tuple[str, str, str]]:
    keys = [
        (kind, form, name)
        for kind in KINDS
        for form in options.forms.split(",")
        for name in options.exports.split(",")
        if fnmatchcase(kind, options.only)
    ]

    def redo(row: Row) -> bool:
        return options.again or (options.faults and row["state"] not in ("ok", "built", "refused"))

    return [k for k in keys if (row := results.find(*k)) is None or redo(row)]


def _files(kind: Kind, form: str, folder: Path) -> tuple[Path, Path, Path]:
    """Return the path of a file of that form, an empty folder, and that of the pictures."""
    original, made = folder / "original", folder / "converted"
    data, empty = folder / "data", folder / "out"
    if not original.exists():
        original.mkdir(parents=True)
        made.mkdir()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            path = kind.write(original)
        if kind.data is not None:
            kind.data(data)
        (folder / "name").write_text(path.name)
    path = original / (folder / "name").read_text()
    if form == "converted":
        if not (made / path.name).exists():
            converted(kind, path, made)
        path = made / path.name
    shutil.rmtree(empty, ignore_errors=True)
    empty.mkdir()
    return path, empty, data


if __name__ == "__main__":
    main()
