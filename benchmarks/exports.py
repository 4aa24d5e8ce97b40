"""Sizes, times and errors of every export of some files, in one table.

    python benchmarks/exports.py fast.pkl [more files] [--out benchmarks/results/exports.json]

One thread. Times are medians of one image in CPU seconds, the formats of a file in turns; Core ML
does not run here. TensorRT is in the table where an NVIDIA GPU is.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dsconvert import load_export, load_generator, open_file
from dsconvert.errors import DsconvertError
from dsconvert.formats.base import GeneratorFile
from dsconvert.formats.export_file import export_file
from dsconvert.records import Export

ROUNDS = 9
FORMS: tuple[tuple[str, str, str], ...] = (
    ("ONNX", ".onnx", "fp32"),
    ("ONNX, half precision", ".onnx", "fp16"),
    ("ONNX, 8-bit weights", ".onnx", "int8"),
    ("OpenVINO", ".xml", "fp32"),
    ("torch.export", ".pt2", "fp32"),
    ("safetensors", ".safetensors", "fp32"),
    ("Core ML", ".mlpackage", "fp32"),
    ("TensorRT", ".ep", "fp32"),
)


def tensors(made: Export) -> list[torch.Tensor]:
    """Return inputs of batch 1: normal numbers, which every input of these files may be."""
    generator = torch.Generator().manual_seed(0)
    shapes = ([1, *map(int, shape[1:])] for shape in made.inputs.values())
    return [torch.randn(shape, generator=generator) for shape in shapes]


def runner(made: Export, file: GeneratorFile) -> Callable[[], Any] | None:
    """Return a call that makes one image; None where the format does not run here."""
    if made.error is None:
        return None
    if made.format == "safetensors":
        model, args = load_generator(made.path), file.draws(None)(0)
        return lambda: model(*args)
    run, given = load_export(made.path, threads=1), tensors(made)
    return lambda: run(*given)


def measure(path: str, folder: Path) -> list[dict[str, Any]]:
    """Export one file in every format, and time the results in turns."""
    file = open_file(path)
    rows: list[dict[str, Any]] = []
    calls: dict[int, Callable[[], Any]] = {}
    for name, suffix, dtype in FORMS:
        row: dict[str, Any] = {"file": Path(path).name, "format": name}
        rows.append(row)
        target = folder / f"{len(rows)}{suffix}"
        try:
            made = export_file(file, target, noise="zero", dtype=dtype)
        except DsconvertError as error:
            row["refused"] = str(error)
            continue
        row |= {"bytes": made.bytes, "error": made.error, "psnr": made.psnr}
        row |= {"export_seconds": made.seconds, "activation_bits": made.activation_bits}
        call = runner(made, file)
        if call is not None:
            calls[len(rows) - 1] = call
    args = file.draws(None)(0)
    calls[-1] = lambda: file.generator.eval()(*args)
    rows.insert(0, {"file": Path(path).name, "format": "PyTorch, as it is"})
    times: dict[int, list[float]] = {i: [] for i in calls}
    with torch.no_grad():
        for turn in range(ROUNDS + 1):
            for i, call in calls.items():
                began = time.process_time()
                call()
                if turn:
                    times[i].append(time.process_time() - began)
    for i, found in times.items():
        rows[i + 1]["cpu_seconds"] = statistics.median(found)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
    lines = [
        "| file | format | MB | ms an image | largest difference | PSNR |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "refused" in row:
            lines.append(f"| {row['file']} | {row['format']} | refused: {row['refused']} | | | |")
            continue
        size = f"{row['bytes'] / 1e6:.2f}" if "bytes" in row else ""
        took = f"{row['cpu_seconds'] * 1e3:.1f}" if "cpu_seconds" in row else "does not run here"
        error = f"{row['error']:.2g}" if row.get("error") is not None else ""
        psnr = f"{row['psnr']:.1f} dB" if row.get("psnr") is not None else ""
        name = row["format"]
        if row.get("psnr") is not None and name.endswith("weights"):
            name += f", {row['activation_bits']}-bit activations"
        lines.append(f"| {row['file']} | {name} | {size} | {took} | {error} | {psnr} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="+")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for path in options.files:
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(path, Path(folder))
    print(table(rows))
    if options.out:
        facts = {"processor": platform.processor(), "torch": torch.__version__, "rows": rows}
        options.out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
