"""``tools/check_dist.py`` deletes nothing but what it wrote."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


class StoppedError(Exception):
    pass


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The tool, which stops at the first command that it runs."""
    spec = importlib.util.spec_from_file_location("dist_tool", ROOT / "tools" / "check_dist.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def stop(*_: object, **__: object) -> None:
        raise StoppedError

    monkeypatch.setattr(module, "run", stop)
    return module


def test_the_files_of_an_earlier_check_are_replaced(tool: Any, tmp_path: Path) -> None:
    for name in ("dsconvert-0.1.0-py3-none-any.whl", "dsconvert-0.1.0.tar.gz"):
        (tmp_path / name).touch()
    for folder in (tmp_path, tmp_path / "a" / "new"):
        with pytest.raises(StoppedError):
            tool.main([str(folder)])
        assert not any(p for p in folder.iterdir() if p.is_file())


@pytest.mark.parametrize("name", ["my work.txt", "torch-2.6.0.whl", "dsconvert"])
def test_a_folder_of_anything_else_is_refused(name: str, tool: Any, tmp_path: Path) -> None:
    (tmp_path / name).write_text("x")
    (tmp_path / "dsconvert-0.1.0.tar.gz").touch()
    with pytest.raises(SystemExit, match=f"holds other files .*{name}.*name a new folder"):
        tool.main([str(tmp_path)])
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(SystemExit, match="is a file"):
        tool.main([str(tmp_path / name)])
