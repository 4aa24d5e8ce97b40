"""``bench``: time and memory of one file or several, interleaved, each in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from dsconvert.bench import Operation, compare, facts, limits, remote, settle
from dsconvert.bench.subject import Inputs
from dsconvert.cli.files import opened
from dsconvert.cli.output import Bars, emit, say
from dsconvert.cli.parser import Call
from dsconvert.config.measure import BenchJob
from dsconvert.errors import UsageError
from dsconvert.formats.base import GeneratorFile
from dsconvert.model.inputs import held_out_inputs
from dsconvert.report.timings import headline, limits_dict, measurement_dict, measurement_report
from dsconvert.util.numbers import counted


def _inputs(path: str, file: GeneratorFile) -> Inputs:
    found = file.inputs()
    if found is None:
        raise UsageError(
            f"{path} can't be run: nothing says what its inputs look like; give --input 256."
        )
    return held_out_inputs(found)


def _operations(options: BenchJob) -> list[Operation]:
    found = [Operation(kind="forward", batch=n) for n in sorted({1, options.batch})]
    if options.train_batch:
        found.append(Operation(kind="step", batch=options.train_batch))
    return found


def _names(paths: Sequence[str]) -> Sequence[str]:
    short = [Path(p).name for p in paths]
    return short if len(set(short)) == len(short) else paths


def run(call: Call) -> None:
    """Measure, and show the table."""
    options: BenchJob = call.options
    settings = settle(options.measuring)
    with ExitStack() as stack, Bars(hidden=options.quiet) as bars:
        bars("load", 0, len(options.snapshots))
        subjects = []
        for done, (name, path) in enumerate(
            zip(_names(options.snapshots), options.snapshots, strict=True), 1
        ):
            file = opened(path, options)
            subject = remote(name, file.generator, _inputs(path, file), settings)
            stack.callback(subject.close)
            subjects.append(subject)
            bars("load", done, len(options.snapshots), name)
        machine = facts(settings)
        best = limits(settings)
        found = compare(subjects, _operations(options), repeats=options.repeats, progress=bars)
    if options.json:
        emit(
            {
                "machine": machine,
                "limits": limits_dict(best),
                "models": [
                    {"snapshot": p, **measurement_dict(m)}
                    for p, m in zip(options.snapshots, found, strict=True)
                ],
            }
        )
        return
    how = [machine["machine"], counted(machine["threads"], "thread"), settings.dtype]
    how += ["channels_last"] if settings.channels_last else []
    how += ["compiled"] if settings.compile else []
    how += ["freed memory kept"] if settings.keep_freed else []
    load = machine["load_average"]
    if options.quiet:
        say(*headline(found))
        return
    say(
        *measurement_report(
            found,
            title=f"on {', '.join(str(x) for x in how)}, torch {machine['torch']}",
            notes=[
                "times are medians of interleaved runs (± half the interquartile range)",
                f"this machine's best: {best.macs_per_second / 1e9:.0f} GMAC/s in a matrix product,"
                f" {best.bytes_per_second / 1e9:.0f} GB/s in a copy",
                *([f"load average {load[0]} at the start"] if load else []),
            ],
        )
    )
