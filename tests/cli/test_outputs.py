"""A file's suffix is a promise, kept by every command that writes a generator or a picture."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch

from dsconvert import load_generator
from dsconvert.cli import main
from dsconvert.formats.registry import open_file
from dsconvert.util.files import PARTS
from dsconvert.web.page import Page

QUICK = ["--init", "svd", "--calibrate", "0", "--json"]
NEEDS = {"safetensors": ["safetensors"], "onnx": ["onnx", "onnxscript", "onnxruntime"],
         "xml": ["openvino"], "pt2": []}  # fmt: skip
MAGIC = {"pt2": b"PK", "pkl": b"\x80\x04", "pth": b"PK", "xml": b"<?xml"}


def begins(path: Path) -> bytes:
    return path.read_bytes()[:16]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        ("conditional_file", "safetensors"),
        ("fastgan_file", "pt2"),
        *(
            pytest.param(kind, suffix, marks=pytest.mark.extended)
            for kind, suffix in (
                ("snapshot_file", "onnx"),
                ("snapshot_file", "xml"),
                ("snapshot_file", "pt2"),
                ("snapshot_file", "safetensors"),
                ("conditional_file", "onnx"),
                ("fastgan_file", "safetensors"),
            )
        ),
    ],
)
def test_convert_writes_the_format_that_the_suffix_names(
    kind: str,
    suffix: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for module in NEEDS[suffix]:
        pytest.importorskip(module)
    source, out = request.getfixturevalue(kind), tmp_path / f"o.{suffix}"
    assert main([str(source), "--out", str(out), *QUICK]) == 0, capsys.readouterr().err
    data = json.loads(capsys.readouterr().out)
    assert list(data["converted"]) == list(open_file(source).generators[:1])
    assert begins(out).startswith(MAGIC.get(suffix, b""))
    if suffix == "safetensors":
        assert begins(out)[8:10] == b'{"'
        assert isinstance(open_file(out).generator, torch.nn.Module)
    if suffix == "onnx":
        __import__("onnx").checker.check_model(str(out))
    assert (tmp_path / "o.bin").exists() == (suffix == "xml")
    assert not list(tmp_path.glob(PARTS))


@pytest.mark.slow
def test_a_table_says_what_was_written(
    snapshot_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("safetensors")
    words = [str(snapshot_file), "--out", str(tmp_path / "o.safetensors"), *QUICK[:-1]]
    assert main(words) == 0
    assert "G_ema alone, as safetensors" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("snapshot_file", "o.pth", r"ends in .pth, and .* end it in .pkl \(official snapshot"),
        ("snapshot_file", "o.h5", "ends in .h5"),
        ("snapshot_file", "o.png", "ends in .png"),
        ("fastgan_file", "o.pkl", r"ends in .pkl, and .* end it in .pth \(checkpoint"),
    ],
)
def test_a_suffix_that_cannot_be_served_is_refused_before_any_work(
    kind: str,
    name: str,
    said: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def work(*_: object, **__: object) -> None:
        pytest.fail("work was done")

    monkeypatch.setattr("dsconvert.cli.convert.convert_file", work)
    source = str(request.getfixturevalue(kind))
    assert main([source, "--out", str(tmp_path / name), *QUICK]) == 2
    import re

    assert re.search(said, capsys.readouterr().err)
    monkeypatch.setattr("dsconvert.distill.files.distill", work)
    words = ["distill", source, source, "--steps", "1", "--features", "0"]
    assert main([*words, "--out", str(tmp_path / name)]) == 2
    assert re.search(said, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_suffix_of_the_input_is_good_for_the_output(
    snapshot_file: Path, tmp_path: Path
) -> None:
    source = tmp_path / "network.dill"
    source.write_bytes(snapshot_file.read_bytes())
    for name in ("fast.dill", "fast", "fast.PKL"):
        words = [str(source), "--out", str(tmp_path / name), "--preset", "exact", *QUICK]
        assert main(words) == 0
        assert begins(tmp_path / name).startswith(MAGIC["pkl"])


@pytest.mark.slow
def test_an_export_of_a_converted_export(snapshot_file: Path, tmp_path: Path, capsys) -> None:
    pytest.importorskip("safetensors")
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    assert main([str(snapshot_file), "--out", str(first), "--preset", "exact", *QUICK]) == 0
    assert main([str(first), "--out", str(second), "--preset", "paper", *QUICK]) == 0
    load_generator(second)
    assert main([str(first), "--out", str(tmp_path / "c.pkl"), *QUICK]) == 2
    assert "end it in .safetensors" in capsys.readouterr().err


def test_an_extra_that_is_missing_is_missed_before_any_work(
    snapshot_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    monkeypatch.setattr("dsconvert.cli.convert.convert_file", pytest.fail)
    assert main([str(snapshot_file), "--out", str(tmp_path / "o.xml"), *QUICK]) == 2
    assert 'pip install "openvino>=2024.4"' in capsys.readouterr().err


@pytest.mark.slow
def test_a_plan_is_json(snapshot_file: Path, tmp_path: Path, capsys) -> None:
    words = [str(snapshot_file), "--plan-only", "--polish", "0", "--out"]
    assert main([*words, str(tmp_path / "o.pkl")]) == 2
    assert "end" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "o.json")]) == 0
    json.loads((tmp_path / "o.json").read_text())


@pytest.mark.parametrize("name", ["g.gif", "g", "g.pkl"])
def test_pictures_of_no_known_format_are_refused(
    name: str, snapshot_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr("dsconvert.cli.generate.opened", pytest.fail)
    monkeypatch.setattr("dsconvert.cli.compare.opened", pytest.fail)
    file, out = str(snapshot_file), str(tmp_path / name)
    for words in (["generate", file], ["compare", file, file]):
        assert main([*words, "--seeds", "0", "--out", out]) == 2
        assert "no format of pictures" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.extended
def test_an_output_that_is_a_link(snapshot_file: Path, tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    link, real = tmp_path / "link.pkl", tmp_path / "big" / "real.pkl"
    link.symlink_to(real)
    assert main([str(snapshot_file), "--out", str(link), *QUICK]) == 0
    assert link.is_symlink()
    before = real.read_bytes()
    assert main([str(snapshot_file), "--out", str(link), *QUICK]) == 2
    words = [str(snapshot_file), "--out", str(link), "--preset", "fast", "--overwrite", *QUICK]
    assert main(words) == 0
    assert link.is_symlink()
    assert real.read_bytes() != before


@pytest.mark.slow
def test_an_output_that_appears_meanwhile(
    snapshot_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    from dsconvert.cli import convert

    real, out = convert.convert_file, tmp_path / "o.pkl"

    def slow(*args: object, **options: object) -> object:
        out.write_text("theirs")
        return real(*args, **options)

    monkeypatch.setattr(convert, "convert_file", slow)
    assert main([str(snapshot_file), "--out", str(out), *QUICK]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("o.pkl", "theirs")]


def test_a_folder_with_blanks_is_quoted_in_the_command_that_serves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = f"{tmp_path / 'my page'}/"
    page = Page(path=out, models=(), bundled=True, bytes=1)
    monkeypatch.setattr("dsconvert.cli.export.check_page", lambda *_, **__: None)
    monkeypatch.setattr("dsconvert.cli.export.opened", lambda *_: None)
    monkeypatch.setattr("dsconvert.cli.export.write_page", lambda *_, **__: page)
    assert main(["export", "g.pkl", "--out", out]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"python -m http.server --directory {shlex.quote(out)}" in said
