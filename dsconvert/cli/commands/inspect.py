"""What is in a file."""

from __future__ import annotations

from argparse import Namespace

from dsconvert.cli.opening import source_of
from dsconvert.cli.output import emit, say
from dsconvert.formats.registry import inspect_file
from dsconvert.report.inspection import inspection


def run(options: Namespace) -> None:
    """Show what the file holds, without running anything in it."""
    info = inspect_file(options.snapshot, module=source_of(options))
    if options.json:
        emit(info.as_dict())
    else:
        say(*inspection(info.as_dict(), verbose=options.verbose))
