"""``--target`` on each kind of file that the commands open."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dsconvert import ModuleSource, open_file
from dsconvert.cli import convert
from dsconvert.cli.parser import parse
from dsconvert.errors import UsageError
from tests.adapters.stylegan2_files import made, official_file
from tests.models import decoder
from tests.search.clocks import ByWeight

MODULE = ModuleSource(factory="tests.models:Decoder", shapes=((16,),))
QUICK = ["--threads", "1", "--init", "svd", "--calibrate", "0", "--quiet", "--json"]


KINDS = ("official", "conditional", "fastgan", "stylegan2", "module")


@pytest.fixture
def file(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, list[str]]:
    """A file, and the options that it needs."""
    if request.param == "stylegan2":
        return official_file(tmp_path / "sg2.pkl", made(c_dim=3)), []
    if request.param == "module":
        torch.save(decoder().state_dict(), tmp_path / "model.pth")
        return tmp_path / "model.pth", ["--module", "tests.models:Decoder", "--input", "16"]
    names = {"official": "snapshot_file", "conditional": "conditional_file"}
    return request.getfixturevalue(names.get(request.param, "fastgan_file")), []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "targets"),
    [
        # test_plan.py converts an official snapshot; the stylegan2 file has classes.
        *(
            pytest.param(kind, ["latency=0.9x", "params=0.9x"], marks=marks)
            for kind in KINDS
            for marks in [[pytest.mark.extended] * (kind in ("official", "conditional"))]
        ),
        pytest.param("module", ["latency=1x"], marks=pytest.mark.extended),
        pytest.param("official", ["macs=0.9x"], marks=pytest.mark.extended),
        pytest.param("official", ["latency=1x"], marks=pytest.mark.extended),
    ],
    indirect=["file"],
)
def test_a_file_meets_its_targets(
    file: tuple[Path, list[str]],
    targets: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path, needed = file
    out = tmp_path / f"out{path.suffix}"
    asked = [word for t in targets for word in ("--target", t)]
    capsys.readouterr()
    words = [str(path), "--out", str(out), *asked, *QUICK, *needed]
    convert.run(parse(words), clock=ByWeight())
    data = json.loads(capsys.readouterr().out)
    assert all(row["met"] for row in data["targets"])
    assert data["unchanged"] == (targets == ["latency=1x"])
    module = MODULE if needed else None
    old, new = open_file(path, module=module), open_file(out, module=module)
    assert new.generators == old.generators
    if "params=0.9x" in targets:
        params = [sum(p.numel() for p in f.generator.parameters()) for f in (old, new)]
        assert params[1] <= 0.9 * params[0]


def test_a_module_needs_the_shape_of_its_inputs(tmp_path: Path) -> None:
    torch.save(decoder().state_dict(), tmp_path / "model.pth")
    words = [str(tmp_path / "model.pth"), "--out", str(tmp_path / "out.pth"), *QUICK]
    with pytest.raises(UsageError, match="add --input SHAPE"):
        convert.run(parse([*words, "--module", "tests.models:Decoder", "--target", "params=0.5x"]))
    assert [p.name for p in tmp_path.iterdir()] == ["model.pth"]
