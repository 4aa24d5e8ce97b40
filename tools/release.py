"""Prepare a release: set the version, the heading of the changelog and the date of the citation.

    python tools/release.py 1.0.0 [--date 2026-12-01]

Every file is checked before any is written. Nothing is committed, tagged or uploaded.
"""

from __future__ import annotations

import argparse
import datetime
import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)(?:(a|b|rc)(\d+))?")


class ReleaseError(Exception):
    """The release can't be prepared; the message says why."""


def ordered(version: str) -> tuple[int, ...]:
    """Return a version as numbers that sort; 1.0.0rc1 comes before 1.0.0.

    Raises:
        ReleaseError: it is not X.Y.Z, or X.Y.Z with a, b or rc and a number.
    """
    found = _VERSION.fullmatch(version)
    if found is None:
        raise ReleaseError(f"{version!r} is no version like 1.0.0 or 1.0.0rc1; give another.")
    stage = {"a": 0, "b": 1, "rc": 2, None: 3}[found[4]]
    return (*(int(found[i]) for i in (1, 2, 3)), stage, int(found[5] or 0))


def replaced(text: str, pattern: str, by: str, name: str) -> str:
    """Return ``text`` with the one match of ``pattern`` replaced.

    Raises:
        ReleaseError: there is none, or more than one.
    """
    made, count = re.subn(pattern, by, text, flags=re.MULTILINE)
    if count != 1:
        raise ReleaseError(f"{name} has {count} places for {by.splitlines()[-1]!r}, not one.")
    return made


def current(root: Path) -> str:
    """Return the version of pyproject.toml."""
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^version = "([^"]+)"$', text, flags=re.MULTILINE)
    if found is None:
        raise ReleaseError("pyproject.toml has no version.")
    return found[1]


def _heading(version: str) -> str:
    """Return the beginning of the line that heads a version in the changelog."""
    return f"## [{version}]"


def changelog(text: str, version: str, date: str) -> str:
    """Return the changelog with its unreleased part under the version's heading.

    Raises:
        ReleaseError: there is nothing unreleased, or the version has a heading already.
    """
    if _heading(version) in text:
        raise ReleaseError(f"CHANGELOG.md has a heading for {version} already.")
    head, mark, rest = text.partition("## [Unreleased]\n")
    body = re.split(r"^## \[", rest, maxsplit=1, flags=re.MULTILINE)[0]
    if not mark or not re.search(r"^- ", body, flags=re.MULTILINE):
        raise ReleaseError("CHANGELOG.md has nothing under [Unreleased].")
    rest = re.sub(r"\A\s*What will be [^\n]*\n+", "\n", rest)
    return f"{head}## [Unreleased]\n\n{_heading(version)} - {date}\n{rest}"


def prepare(root: Path, version: str, date: str) -> list[str]:
    """Write the version, and the date, into every file that holds one.

    Returns:
        the names of the files.

    Raises:
        ReleaseError: a file has no place for it, or the version is not newer (nor as new, and
            without a heading in the changelog). Nothing is written.
        ValueError: the date is none.
    """
    before = current(root)
    released = _heading(before) in (root / "CHANGELOG.md").read_text(encoding="utf-8")
    # The files name the first release before there is one.
    first = version == before and not released
    if not first and ordered(version) <= ordered(before):
        raise ReleaseError(f"{version} is not newer than {before}; give a newer one.")
    # Python 3.11 also reads 20261201 and 2026-W49-2, which no other reader of the files has to.
    date = datetime.date.fromisoformat(date).isoformat()

    def pyproject(text: str) -> str:
        made = replaced(text, r'^version = "[^"]+"$', f'version = "{version}"', "pyproject.toml")
        if ordered(version) < (1, 0, 0, 3, 0):
            return made
        return made.replace("Development Status :: 4 - Beta", _STABLE)

    def module(text: str) -> str:
        return replaced(text, r'^VERSION = "[^"]+"$', f'VERSION = "{version}"', "version.py")

    def citation(text: str) -> str:
        made = replaced(text, r"^version: .*$", f"version: {version}", "CITATION.cff")
        return replaced(made, r"^date-released: .*$", f"date-released: {date}", "CITATION.cff")

    edits: dict[str, Callable[[str], str]] = {
        "pyproject.toml": pyproject,
        "dsconvert/util/version.py": module,
        "CHANGELOG.md": lambda text: changelog(text, version, date),
        "CITATION.cff": citation,
    }
    made = {name: edit((root / name).read_text(encoding="utf-8")) for name, edit in edits.items()}
    for name, text in made.items():
        (root / name).write_text(text, encoding="utf-8")
    return list(made)


_STABLE = "Development Status :: 5 - Production/Stable"


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("version", help="for example 1.0.0")
    parser.add_argument("--date", default=datetime.date.today().isoformat(), help="YYYY-MM-DD")
    options = parser.parse_args(argv)
    try:
        names = prepare(ROOT, options.version, options.date)
    except (ReleaseError, OSError, ValueError) as error:
        print(f"release: {error}", file=sys.stderr)
        return 2
    print(f"version {options.version} in {', '.join(names)}")
    print(f"next: make test-all; make dist; git commit -a; git tag v{options.version}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
