"""``report --sensitivity``: a table, JSON and a picture of the loss of every layer."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch

from dsconvert.cli import main
from dsconvert.report.curves import Curve, Panel, curves_svg
from tests.search.test_promise import small


def test_curves_are_an_svg_of_their_points() -> None:
    curves = (
        Curve(name="a <1>", points=((0.1, 0.5), (1.0, 0.001))),
        Curve(name="b", points=((0.0, 1.0), (0.2, 0.1))),  # 0 has no place on the axis
    )
    text = curves_svg([Panel(title="t & u", x="x", y="y", curves=curves)])
    root = ET.fromstring(text)
    lines = root.findall(".//{*}polyline")
    first, second = ([p.split(",") for p in line.attrib["points"].split()] for line in lines)
    assert len(first) == 2
    assert len(second) == 1
    (x1, y1), (x2, y2) = ((float(a), float(b)) for a, b in first)
    assert x1 < x2
    assert y1 < y2  # a smaller loss is lower
    ET.fromstring(curves_svg([Panel(title="t", x="x", y="y", curves=())]))


@pytest.mark.slow
def test_the_report_shows_every_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dsconvert.cli.sensitivity.lite_features", lambda _: None)
    torch.save(small().state_dict(), tmp_path / "small.pt")
    picture = tmp_path / "curves.svg"
    words = ["report", str(tmp_path / "small.pt"), "--module", "tests.search.test_promise:small"]
    words += ["--input", "8", "--sensitivity"]
    assert main([*words, "--out", str(picture), "--verbose"]) == 0
    said = capsys.readouterr().out
    for part in ("convolution", "rank 1", "50% kept", "every trial", "wide", "narrow"):
        assert part in said
    assert len(ET.fromstring(picture.read_text()).findall(".//{*}polyline")) >= 3
    assert main([*words, "--out", str(picture)]) == 2
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "x.svg"], "--out is the picture of --sensitivity"),
        (["--sensitivity", "--out", "x.png"], "end it in .svg"),
        (["--sensitivity"], "nothing says what the inputs of"),
    ],
)
def test_bad_usage(tmp_path: Path, capsys, words: list[str], said: str) -> None:
    torch.save(small().state_dict(), tmp_path / "small.pt")
    more = ["--module", "tests.search.test_promise:small"]
    assert main(["report", str(tmp_path / "small.pt"), *more, *words]) == 2
    assert said in capsys.readouterr().err
