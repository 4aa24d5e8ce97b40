"""Hooks of the documentation site (mkdocs): the reference of all commands."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
from typing import Any
from unittest import mock

MARKER = "<!-- reference of the commands -->"


def command_reference() -> str:
    """Return the Markdown of all commands and their options."""
    try:
        return importlib.import_module("dsconvert.config.reference").reference()
    except ModuleNotFoundError:  # until config/ makes the tables: the text of --help
        return "\n\n".join(f"## dsconvert {n}\n\n```text\n{_help(n)}\n```" for n in _names())


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the marker of a page by the reference (called by mkdocs for each page)."""
    return markdown.replace(MARKER, command_reference()) if MARKER in markdown else markdown


def _names() -> list[str]:
    return list(importlib.import_module("dsconvert.cli.parser").COMMANDS)


def _help(command: str) -> str:
    main = importlib.import_module("dsconvert.cli").main
    written = io.StringIO()
    wide = mock.patch.dict(os.environ, {"COLUMNS": "96"})
    with wide, contextlib.redirect_stdout(written), contextlib.suppress(SystemExit):
        main([command, "--help"])
    return written.getvalue().strip()
