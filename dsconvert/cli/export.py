"""``export``: write a generator in the format that the file name's end, or ``--format``, names."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dsconvert.cli.files import opened, read_plan
from dsconvert.cli.output import Bars, emit, say, say_whole
from dsconvert.cli.parser import Call
from dsconvert.config.export import ExportJob, export_format
from dsconvert.formats.base import GeneratorFile
from dsconvert.formats.export_file import check_export, export_file
from dsconvert.hub import check_hub, save_pretrained
from dsconvert.records import Export
from dsconvert.web import check_page, write_page


def run(call: Call) -> None:
    """Export ``G_ema``."""
    options: ExportJob = call.options
    name = export_format(options.out, options.format)
    if name == "page":
        _page(options)
    elif name == "hub":
        _hub(options)
    else:
        _graph(options)


def _page(options: ExportJob) -> None:
    check_page(options.out, overwrite=options.overwrite)
    with Bars(hidden=options.quiet) as bars:
        bars("export and compare", 0, 1)
        made = write_page(
            opened(options.snapshot, options),
            options.out,
            original=_original(options),
            title=options.title,
            runtime=options.runtime,
            noise=options.noise,
            seed=options.seed,
            dtype=options.dtype,
            least_psnr=options.least_psnr,
            overwrite=options.overwrite,
        )
    if options.json:
        emit({"snapshot": options.snapshot, **asdict(made)})
        return
    origin = "with the runtime, works offline" if made.bundled else "loads its runtime from a CDN"
    if not options.quiet:
        say(*(f"{Path(m.path).name}: {m.bytes / 1e6:.1f} MB; {_compared(m)}" for m in made.models))
        serve = shlex.join(["python", "-m", "http.server", "--directory", options.out])
        say_whole(f"serve it: {serve}")
    say_whole(f"wrote {options.out}: a page, {made.bytes / 1e6:.1f} MB; {origin}")


def _hub(options: ExportJob) -> None:
    check_hub(options.out, overwrite=options.overwrite)
    plan = None if options.plan is None else read_plan(options.plan)
    with Bars(hidden=options.quiet) as bars:
        bars("export and measure", 0, 1)
        made = save_pretrained(
            opened(options.snapshot, options),
            options.out,
            original=_original(options),
            title=options.title,
            plan=plan,
            made_by=options.made_by,
            distance=options.distance,
            noise=options.noise,
            overwrite=options.overwrite,
        )
    if options.json:
        emit({"snapshot": options.snapshot, **asdict(made)})
        return
    quality = made.measured["quality"]
    lines: list[str] = []
    if quality is not None and quality["psnr_db"] is not None:
        lines = [f"PSNR to the original {quality['psnr_db']:.1f} dB"]
    elif quality is not None:
        lines = [f"STFT distance to the original {quality['stft_distance']:.3f}"]
    size = f"{made.bytes / 1e6:.1f} MB"
    if not options.quiet:
        say(*lines)
    say_whole(f"wrote {options.out}: {', '.join(made.files)}, {size}")


def _original(options: ExportJob) -> GeneratorFile | None:
    return None if options.original is None else opened(options.original, options)


def _graph(options: ExportJob) -> None:
    settings: dict[str, Any] = {
        "format": options.format,
        "noise": options.noise,
        "overwrite": options.overwrite,
        "dtype": options.dtype,
    }
    out, name = options.out, settings.pop("format")
    check_export(out, name, **settings)
    with Bars(hidden=options.quiet) as bars:
        bars("export and compare", 0, 1)
        made = export_file(
            opened(options.snapshot, options),
            out,
            format=name,
            seed=options.seed,
            least_psnr=options.least_psnr,
            **settings,
        )
    if options.json:
        emit({"snapshot": options.snapshot, **asdict(made)})
        return
    inputs = ", ".join(
        f"{name} ({', '.join(str(size) for size in shape)})" for name, shape in made.inputs.items()
    )
    if not options.quiet:
        say(f"inputs: {inputs}", _compared(made))
    size = f"{made.bytes / 1e6:.1f} MB"
    say_whole(f"wrote {' and '.join(made.files)}: {made.format}, {size}, noise {made.noise}")


def _compared(made: Export) -> str:
    if made.error is None:
        return (
            "loaded again, its inputs and images have the model's names and shapes; it was not "
            "run, since Core ML runs on Apple's systems alone"
        )
    measured = made.snr if made.psnr is None else made.psnr
    if measured is not None:
        what = "signal-to-noise ratio" if made.psnr is None else "PSNR"
        bits = "" if made.dtype == "fp16" else f", {made.activation_bits}-bit activations"
        return (
            f"{made.dtype} weights{bits}: {what} to the model {measured:.1f} dB on inputs that it "
            f"was not calibrated by; differs by at most {made.error:.2g} (images reach "
            f"{made.range:.2g})"
        )
    return (
        "loaded again and compared with the model on random latents, batches of "
        f"{', '.join(map(str, made.batches))}: differs by at most {made.error:.2g} (images reach "
        f"{made.range:.2g})"
    )
