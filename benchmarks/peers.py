r"""The official generator, its conversions and its peers beside each other, in one run.

    python benchmarks/peers.py                       # everything, 256 px first
    python benchmarks/peers.py --sizes 256 --rows official,exact,paper,balanced,fast
    python benchmarks/peers.py --quick --out /tmp/try    # small generators: does it work?
    python benchmarks/peers.py --device cuda --dtype amp --out benchmarks/results/gpu-amp

The official architecture (random weights, ngf 128) and what is made of it, one process each. Every
row is timed once as soon as it is there; then further rounds go through the rows in turn, some
(``--beside``) at a time, each time with the official one, which their ratios are to. Results are
written after each row and each round: a run can be cut short at any time, and started again
(rows that have all their rounds are kept; the official one runs along again, since ratios are only
taken within one run). Writes ``peers.json``, ``peers.md`` and ``peers.png`` into ``--out``.

Needs ``pip install "dsconvert[onnx,openvino,peers]"`` for all rows; one whose tool is missing says
so.
"""

from __future__ import annotations

import argparse
import os
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from peer_report import markdown, plot
from peer_rows import (
    CONFIGS,
    ROWS,
    Built,
    Options,
    SkippedError,
    build,
    official,
    saved_bytes,
    traffic,
)
from results_file import Results
from torch import nn

from dsconvert.bench import Operation, RemoteSubject, Settings, facts, limits, settle
from dsconvert.core.pipeline import cost, sampler_of
from dsconvert.data.pictures import psnr
from dsconvert.errors import DsconvertError
from dsconvert.metrics import sample_images

TOOLS = ("dsconvert", "bsconv", "torch-pruning", "onnxruntime", "openvino", "scipy")
FORWARDS = (1, 8)
STEP = 4
SAMPLES = 4


def key(operation: Operation) -> str:
    """For JSON."""
    return f"{operation.kind}_{operation.batch}"


def operations(built: Built, only_forward: bool) -> list[Operation]:
    """What a row can do."""
    found = [Operation(kind="forward", batch=n) for n in FORWARDS]
    if built.trains and not only_forward:
        found.append(Operation(kind="step", batch=STEP))
    return found


def results_of(folder: Path, meta: dict[str, Any]) -> Results:
    """Return the file of a run's results."""
    sizes, names = list(CONFIGS), list(ROWS)
    return Results(
        folder / "peers.json",
        meta,
        same=("machine", "threads", "torch", "dtype", "ngf", "init", "device"),
        names=("size", "name"),
        order=lambda key: (sizes.index(key[0]), names.index(key[1])),
        markdown=markdown,
    )


def image_error(model: nn.Module, original: torch.Tensor, inputs: Any) -> float:
    """PSNR to the original's images, the same latents and noise, dB."""
    images = sample_images(model, inputs, samples=SAMPLES, seed=0, batch=SAMPLES)
    return float(psnr(images, original).mean())


def describe(
    name: str, built: Built, seconds: float, original: nn.Module, reference: torch.Tensor
) -> dict[str, Any]:
    """What is known of a row without timing it."""
    model = built.counted or built.model
    inputs = sampler_of(original)
    example = inputs(1, torch.Generator().manual_seed(0))
    counted = cost(model, example)
    moved, _ = traffic(model, example)
    return {
        "params": counted.params,
        "macs": counted.macs,
        "traffic_bytes": 4 * moved,
        "file_bytes": built.bytes or saved_bytes(model),
        "conversion_s": None if name == "official" else seconds,
        "psnr_db": None if name == "official" else image_error(model, reference, inputs),
        "notes": list(built.notes),
        **built.extra,
    }


def run_size(size: str, args: argparse.Namespace, settings: Settings, results: Results) -> None:
    """All rows of one architecture, some at a time: each process holds gigabytes."""
    wanted = [n for n in ROWS if n in args.rows]
    missing = [n for n in wanted if not _complete(results.find(size, n), args.repeats)]
    others = [n for n in missing if n != "official"]
    groups = [others[i : i + args.beside] for i in range(0, len(others), args.beside)]
    for group in groups or ([[]] if missing else []):
        _run_group(size, ["official", *group], args, settings, results)


def _run_group(
    size: str, names: list[str], args: argparse.Namespace, settings: Settings, results: Results
) -> None:
    """Rows in turn, the official one first: the others' ratios are to its times here."""
    options = Options(
        config=size,
        ngf=args.ngf,
        init=args.init,
        calibrate=args.calibrate,
        folder=results.path.parent,
        threads=facts(settings)["threads"],
    )
    original = official(options)
    reference = sample_images(
        original, sampler_of(original), samples=SAMPLES, seed=0, batch=SAMPLES
    )
    session = time.strftime("%Y-%m-%d %H:%M:%S")
    live: list[tuple[dict[str, Any], RemoteSubject, list[Operation]]] = []
    try:
        for name in names:
            row: dict[str, Any] = {"size": size, "name": name, "session": session, "seconds": {}}
            print(f"{size} {name}: build", flush=True)
            try:
                entry = _start(row, name, original, reference, options, args, settings)
                live.append(entry)
                _once(entry, live[0][0])
            except (SkippedError, DsconvertError) as error:
                row["skipped"] = str(error)
            except Exception as error:  # a peer's own bug must not end the run
                traceback.print_exc()
                row["skipped"] = f"{type(error).__name__}: {error}"
            results.put(row)
        for turn in range(1, args.repeats):
            order = live if turn % 2 else live[::-1]
            for entry in order:
                _once(entry, live[0][0])
                print(f"{size} {entry[0]['name']}: round {turn + 1} of {args.repeats}", flush=True)
            for row, _, _ in live:
                row["reference_seconds"] = live[0][0]["seconds"]
                results.put(row)
    finally:
        for _, subject, _ in live:
            subject.close()


def _complete(row: dict[str, Any] | None, repeats: int) -> bool:
    if row is None or "skipped" in row or not row["seconds"]:
        return False
    return all(len(runs) >= min(repeats, 3) for runs in row["seconds"].values())


def _start(
    row: dict[str, Any],
    name: str,
    original: nn.Module,
    reference: torch.Tensor,
    options: Options,
    args: argparse.Namespace,
    settings: Settings,
) -> tuple[dict[str, Any], RemoteSubject, list[Operation]]:
    """Build a row, send it to its process, and take its memory (its process is fresh)."""
    built, seconds = build(name, original, options)
    row |= describe(name, built, seconds, original, reference)
    how = Settings(
        device=settings.device,
        dtype=settings.dtype,
        threads=settings.threads,
        channels_last=args.channels_last,
        compile=built.compile,
        keep_freed=built.keep_freed,
    )
    subject = RemoteSubject(name, built.model, built.inputs, how)
    todo = operations(built, args.forward_only)
    try:
        row["peak_bytes"], row["kept_bytes"], row["first_call_s"] = {}, {}, {}
        for operation in todo:
            # The first call compiles, opens files, fills caches: never timed with the others.
            row["first_call_s"][key(operation)] = subject.seconds(operation)
            row["peak_bytes"][key(operation)] = subject.peak(operation)
            if operation.kind == "step":
                row["kept_bytes"][key(operation)] = subject.kept(operation)
    except DsconvertError:
        subject.close()
        raise
    return row, subject, todo


def _once(
    entry: tuple[dict[str, Any], RemoteSubject, list[Operation]], reference: dict[str, Any]
) -> None:
    """One timed run of everything."""
    row, subject, todo = entry
    for operation in todo:
        row["seconds"].setdefault(key(operation), []).append(subject.seconds(operation))
    row["load_average"] = [round(x, 2) for x in os.getloadavg()]
    row["reference_seconds"] = reference["seconds"]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/peers"))
    parser.add_argument("--sizes", default=",".join(CONFIGS), help="of " + ", ".join(CONFIGS))
    parser.add_argument("--rows", default=";".join(ROWS), help="names, separated by ; (or ,)")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds")
    parser.add_argument("--beside", type=int, default=2, metavar="N",
                        help="rows alive beside the official one: gigabytes each")  # fmt: skip
    parser.add_argument("--ngf", type=int, help="default 128, and 8 with --quick")
    parser.add_argument("--quick", action="store_true", help="small, two rounds: only a trial")
    parser.add_argument("--forward-only", action="store_true", help="no forward + backward")
    parser.add_argument("--init", default="svd", choices=("svd", "fit"))
    parser.add_argument("--calibrate", type=int, help="latents for fit and statistics (default: 0 "
                        "with svd)")  # fmt: skip
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--channels-last", action="store_true")
    args = parser.parse_args()
    args.sizes = args.sizes.split(",")
    chosen = args.rows if ";" in args.rows or args.rows in ROWS else args.rows.replace(",", ";")
    args.rows = [r.strip() for r in chosen.split(";")]
    unknown = [r for r in args.rows if r not in ROWS] + [s for s in args.sizes if s not in CONFIGS]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; rows are {'; '.join(ROWS)}")
    args.ngf = args.ngf or (8 if args.quick else 128)
    args.repeats = 2 if args.quick else args.repeats
    if args.calibrate is None and args.init == "svd":
        args.calibrate = 0
    return args


def main() -> None:
    """Run what is missing and write it."""
    args = parse()
    settings = settle(Settings(device=args.device, dtype=args.dtype, threads=args.threads))
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    known = facts(settings)
    best = limits(settings)
    meta = {
        **known,
        "ngf": args.ngf,
        "init": args.init,
        "calibrate": args.calibrate,
        "channels_last": args.channels_last,
        "versions": {t: _version(t) for t in TOOLS},
        "gmac_per_s": best.macs_per_second / 1e9,
        "gb_per_s": best.bytes_per_second / 1e9,
        "batches": {"forward": list(FORWARDS), "step": STEP},
        "psnr_samples": SAMPLES,
    }
    results = results_of(args.out, meta)
    results.write()
    for size in args.sizes:
        run_size(size, args, settings, results)
    plot(results.data, args.out / "peers.png")
    print((args.out / "peers.md").read_text())


if __name__ == "__main__":
    main()
