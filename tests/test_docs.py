"""The documentation: each block of code runs, and the site builds without a warning.

Blocks of one page share a folder and a namespace. ``python`` blocks are executed; ``console`` ones
are commands of dsconvert, and where one fits, its fit is shortened (``--calibrate 8``). ``text``
blocks need what a test has not (a GPU, minutes, another repository): nothing but help is checked.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from dsconvert.cli import main
from dsconvert.cli.parser import parse
from dsconvert.config.jobs import JOBS

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
_BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SNIPPET = re.compile(r'^--8<-- "(.*)"$', re.MULTILINE)


def blocks(page: Path) -> list[tuple[str, str, int]]:
    """(language, code, line) of each fenced block."""
    text = page.read_text(encoding="utf-8")
    return [(m[1], m[2], text[: m.start()].count("\n") + 1) for m in _BLOCK.finditer(text)]


def _command(line: str) -> list[str]:
    words = shlex.split(line, comments=True)
    assert words[0] == "dsconvert", line
    return words[1:]


def _shortened(words: list[str]) -> list[str]:
    fits = words[0] not in JOBS and "--plan-only" not in words and "--calibrate" not in words
    return [*words, "--calibrate", "8"] if fits else words


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_every_block_runs(
    page: Path,
    snapshot_file: Path,
    fastgan_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = blocks(page)
    if not any(language in ("python", "console") for language, _, _ in found):
        return
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "generator.pkl").symlink_to(snapshot_file)
    (tmp_path / "all_1000.pth").symlink_to(fastgan_file)
    module = ModuleType("page")  # dataclasses look their module up
    monkeypatch.setitem(sys.modules, "page", module)
    for language, code, line in found:
        if language == "python":
            whole = _SNIPPET.sub(lambda m: (ROOT / m[1]).read_text(encoding="utf-8"), code)
            exec(compile(whole, f"{page.name}:{line}", "exec", dont_inherit=True), vars(module))
        elif language == "console":
            for command in code.strip().splitlines():
                status = main(_shortened(_command(command)))
                said = capsys.readouterr()
                assert status == 0, f"{page.name}: {command}\n{said.err}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_every_other_command_is_one(page: Path) -> None:
    """What can't run here has at least options that exist."""
    for language, code, _ in blocks(page):
        if language != "text":
            continue
        for line in code.splitlines():
            if line.startswith("dsconvert "):
                parse(_command(line))


def test_the_pages_link_to_files_that_exist() -> None:
    for page in [*PAGES, ROOT / "README.md"]:
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_site_builds(tmp_path: Path) -> None:
    for name in ("material", "mkdocstrings_handlers"):
        if importlib.util.find_spec(name) is None:
            pytest.skip('the extra "docs" is not installed')
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    reference = (tmp_path / "reference" / "index.html").read_text(encoding="utf-8")
    assert "Decide for every convolution" in reference or "Decide what to do with" in reference
