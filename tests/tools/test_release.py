"""``make release`` changes every place that holds the version, or none."""

from __future__ import annotations

import datetime
import importlib.util
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from dsconvert.util.version import VERSION

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("pyproject.toml", "dsconvert/util/version.py", "CHANGELOG.md", "CITATION.cff")


@pytest.fixture(scope="module")
def tool() -> Any:
    spec = importlib.util.spec_from_file_location("release_tool", ROOT / "tools" / "release.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def contents(root: Path) -> list[str]:
    return [(root / name).read_text(encoding="utf-8") for name in NAMES]


def test_every_file_names_the_same_version(tool: Any) -> None:
    assert tool.current(ROOT) == VERSION
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.*)$", citation, re.MULTILINE)[1] == VERSION


def test_a_release_is_prepared(tool: Any, copy: Path) -> None:
    before = contents(copy)
    assert tool.prepare(copy, "98.7.6", "2031-02-03") == list(NAMES)
    pyproject, version, changes, citation = contents(copy)
    assert 'version = "98.7.6"' in pyproject
    assert "5 - Production/Stable" in pyproject
    assert 'VERSION = "98.7.6"' in version
    assert "version: 98.7.6\ndate-released: 2031-02-03\n" in citation
    head, _, rest = changes.partition("## [98.7.6] - 2031-02-03\n")
    assert head.endswith("## [Unreleased]\n\n")
    assert "### Added" in rest
    # Nothing else has changed.
    assert len(changes.splitlines()) <= len(before[2].splitlines()) + 2
    # The same version twice is refused, and so is one without changes.
    after = contents(copy)
    with pytest.raises(tool.ReleaseError, match="not newer"):
        tool.prepare(copy, "98.7.6", "2031-02-03")
    with pytest.raises(tool.ReleaseError, match=r"nothing under \[Unreleased\]"):
        tool.prepare(copy, "98.7.7", "2031-02-03")
    assert contents(copy) == after


def test_the_first_release_has_the_version_that_the_files_name(tool: Any, copy: Path) -> None:
    changes = (copy / "CHANGELOG.md").read_text(encoding="utf-8")
    for heading in (f"## [{tool.current(copy)}] - 2026-01-01", "## Earlier"):
        (copy / "CHANGELOG.md").write_text(changes + heading + "\n", encoding="utf-8")
        version = tool.current(copy)
        if heading != "## Earlier":
            with pytest.raises(tool.ReleaseError, match="not newer"):
                tool.prepare(copy, version, "2031-02-03")
            continue
        assert tool.prepare(copy, version, "2031-02-03") == list(NAMES)
        assert f"## [{version}] - 2031-02-03" in contents(copy)[2]


def test_a_date_is_written_as_every_reader_knows_it(tool: Any, copy: Path) -> None:
    try:
        datetime.date.fromisoformat("20310203")
    except ValueError:  # before Python 3.11
        pytest.skip("Python reads no other form")
    tool.prepare(copy, "98.7.6", "20310203")
    *_, changes, citation = contents(copy)
    assert "## [98.7.6] - 2031-02-03\n" in changes
    assert "date-released: 2031-02-03\n" in citation


@pytest.mark.parametrize("version", ["1", "1.0", "v1.0.0", "1.0.0-rc1", "0.0.1", "1.0.0.0", ""])
def test_other_versions_are_refused(version: str, tool: Any, copy: Path) -> None:
    before = contents(copy)
    with pytest.raises(tool.ReleaseError):
        tool.prepare(copy, version, "2031-02-03")
    assert contents(copy) == before


def test_the_order_of_versions(tool: Any) -> None:
    words = ["0.9.9", "1.0.0a1", "1.0.0b1", "1.0.0rc1", "1.0.0rc2", "1.0.0", "1.0.1", "1.10.0"]
    order = [tool.ordered(word) for word in words]
    assert order == sorted(order)
