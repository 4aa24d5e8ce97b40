"""The reference page of all settings, as Markdown."""

from __future__ import annotations

import inspect
from typing import Any

from dsconvert.config.base import Job
from dsconvert.config.jobs import JOBS
from dsconvert.config.setting import Item, items, sections

_ABSENT = "–"


def reference() -> str:
    """Return the Markdown of every command: its help and a table of its settings."""
    return "\n\n".join(
        f"## dsconvert {name}\n\n{described(job)}\n\n{table(job)}" for name, job in JOBS.items()
    )


def described(cls: type[Any]) -> str:
    """Return the docstring of a class of settings as paragraphs."""
    return inspect.cleandoc(cls.__doc__ or "")


def table(cls: type[Any]) -> str:
    """Return a Markdown table of the settings of ``cls`` and of its parts.

    Columns: the option (or argument), its name in Python, the default, the values allowed, its
    meaning, and, for a job that resumes runs, whether a resumed run may change it.
    """
    typed = [item for _, found in sections(cls) for item in found]
    rest = [item for item in items(cls) if item.option is None]
    resumes = any(item.name == "resume" for item in typed) or not issubclass(cls, Job)
    head = ["Option", "In Python", "Default", "Values", "Meaning", "A resumed run"]
    rows = [head, ["---"] * len(head), *(_row(item) for item in (*typed, *rest))]
    return "\n".join("| " + " | ".join(row if resumes else row[:-1]) + " |" for row in rows)


def _row(item: Item) -> list[str]:
    return [
        _ABSENT if item.option is None else f"`{item.option}`",
        f"`{'.'.join(item.path)}`",
        _default(item),
        _escaped(item.values_text) or _ABSENT,
        _escaped(item.about.help),
        "may change it" if item.about.resumable else "keeps it",
    ]


def _default(item: Item) -> str:
    if item.required:
        return "required"
    return _escaped(item.default_text) or _ABSENT


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")
