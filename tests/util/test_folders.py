"""A folder is replaced only if its writer has made all of it; no kill loses its content."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsconvert.errors import OutputError
from dsconvert.export import coreml
from dsconvert.hub import pretrained
from dsconvert.util.folders import FolderKind, check_new_folder, whole_folder
from dsconvert.web import page

KINDS = {
    "hub": (pretrained.KIND, {"library": "dsconvert"}, {"library": "timm"}),
    "page": (page.KIND, {"dsconvert": "0.1"}, {"title": "my page"}),
    "coreml": (coreml.KIND, {"rootModelIdentifier": "x"}, {"name": "an extension of a browser"}),
}


def content(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()
    }


@pytest.mark.parametrize("name", KINDS)
def test_a_folder_of_its_writer_is_replaced(name: str, tmp_path: Path) -> None:
    kind, mark, _ = KINDS[name]
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / kind.mark).write_text(json.dumps(mark))
    with pytest.raises(OutputError, match="give --overwrite"):
        check_new_folder(folder, kind=kind, overwrite=False)
    with whole_folder(folder, kind=kind, overwrite=True) as new:
        (new / "new").write_text("new")
    assert content(tmp_path) == {"out/new": "new"}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    "theirs", ['{"library": ', "[]", "null", "not JSON", "[" * 100_000, None], ids=str
)
def test_a_file_of_the_same_name_is_no_mark(name: str, theirs: str | None, tmp_path: Path) -> None:
    kind, _, other = KINDS[name]
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / kind.mark).write_text(json.dumps(other) if theirs is None else theirs)
    (folder / "thesis.tex").write_text("mine")
    before = content(folder)
    with pytest.raises(OutputError, match="holds other files"):
        check_new_folder(folder, kind=kind, overwrite=True)
    assert content(folder) == before


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("theirs", [".git/HEAD", "thesis.tex", "photos/samples.png"])
def test_a_file_that_the_writer_never_makes_stays(name: str, theirs: str, tmp_path: Path) -> None:
    kind, mark, _ = KINDS[name]
    folder = tmp_path / "out"
    (folder / theirs).parent.mkdir(parents=True)
    (folder / theirs).write_text("mine")
    (folder / kind.mark).write_text(json.dumps(mark))
    before = content(folder)
    with (
        pytest.raises(OutputError, match=theirs),
        whole_folder(folder, kind=kind, overwrite=True),
    ):
        raise AssertionError
    assert content(folder) == before


def test_a_kill_between_the_two_renames_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = FolderKind(mark="mark.json", key="mine", names=("mark.json",))
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "mark.json").write_text('{"mine": 1}')
    rename, names = Path.rename, []

    def killed(self: Path, target: Path) -> Path:
        names.append(target)
        if len(names) > 1:
            raise SystemExit
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", killed)
    monkeypatch.setattr("dsconvert.util.folders.shutil.rmtree", lambda *_, **__: None)
    with pytest.raises(SystemExit), whole_folder(folder, kind=kind, overwrite=True):
        pass
    monkeypatch.undo()
    left = names[0]
    with pytest.raises(OutputError, match="holds the former content") as found:
        check_new_folder(folder, kind=kind, overwrite=True)
    assert str(left) in str(found.value)
    left.rename(folder)
    check_new_folder(folder, kind=kind, overwrite=True)
