"""Hooks of the documentation site (mkdocs): the reference of all commands."""

from __future__ import annotations

from typing import Any

from dsconvert.config.reference import reference

MARKER = "<!-- reference of the commands -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the marker of a page by the reference (called by mkdocs for each page)."""
    return markdown.replace(MARKER, reference()) if MARKER in markdown else markdown
