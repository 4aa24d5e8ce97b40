"""What is in a file."""

from __future__ import annotations

from argparse import Namespace

from dsconvert.cli.output import emit, say
from dsconvert.report.tables import snapshot_table
from dsconvert.snapshot import inspect_snapshot


def run(options: Namespace) -> None:
    """Show what the file holds, without running anything in it."""
    info = inspect_snapshot(options.snapshot)
    if options.json:
        emit(info.as_dict())
    else:
        say(snapshot_table(info))
