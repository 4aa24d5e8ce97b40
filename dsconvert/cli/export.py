"""``export``: a generator in another format, compared with the original before it gets its name."""

from __future__ import annotations

from dataclasses import asdict

from dsconvert.cli.files import opened
from dsconvert.cli.output import Bars, emit, say
from dsconvert.cli.parser import Call
from dsconvert.config.files import ExportJob
from dsconvert.formats.export_file import check_export, export_file


def run(call: Call) -> None:
    """Export ``G_ema``."""
    options: ExportJob = call.options
    check_export(options.out, options.format, noise=options.noise, overwrite=options.overwrite)
    with Bars(hidden=options.quiet) as bars:
        bars("export and compare", 0, 1)
        made = export_file(
            opened(options.snapshot, options),
            options.out,
            format=options.format,
            noise=options.noise,
            seed=options.seed,
            overwrite=options.overwrite,
        )
    if options.json:
        emit({"snapshot": options.snapshot, **asdict(made)})
        return
    inputs = ", ".join(
        f"{name} ({', '.join(str(size) for size in shape)})" for name, shape in made.inputs.items()
    )
    say(
        f"inputs: {inputs}",
        "loaded again and compared with the model on random latents, batches of "
        f"{', '.join(map(str, made.batches))}: differs by at most {made.error:.2g} (images reach "
        f"{made.range:.2g})",
        f"wrote {' and '.join(made.files)}: {made.format}, {made.bytes / 1e6:.1f} MB, noise "
        f"{made.noise}",
        quiet=options.quiet,
    )
