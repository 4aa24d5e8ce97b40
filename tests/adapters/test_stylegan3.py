"""StyleGAN3's and StyleGAN-XL's files: the values of the original code, and converted ones."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from dsconvert_adapters.stylegan3 import ADAPTER, Generator, architecture
from torch import nn

from dsconvert.core.merge import merged_module
from dsconvert.core.pipeline import apply
from dsconvert.core.pipeline import plan as plan_of
from dsconvert.errors import AdapterError, CorruptSnapshotError
from dsconvert.formats.convert_file import convert_file
from dsconvert.formats.official import inspect_snapshot, load_snapshot, save_snapshot
from dsconvert.records import Plan
from dsconvert.testing import check_adapter
from tests.adapters.originals import expected, some
from tests.adapters.stylegan3_files import (
    FEATURES,
    RADIAL,
    arguments,
    by_class,
    fill,
    images,
    made,
    official,
    official_file,
)

HERE = Path(__file__).parent
TEXT = "official = True\n"
SPRUNG = "import pathlib\npathlib.Path({!r}).mkdir()\nclass Generator: pass\n"
CASES = {
    (code, name): case
    for code in ("stylegan3", "stylegan_xl")
    for name, case in expected(code).items()
}


def written(path: Path, g: nn.Module, **more: Any) -> Path:
    return official_file(path, official(g, TEXT), **more)


@pytest.mark.parametrize(("code", "name"), CASES)
def test_a_file_gives_the_values_of_the_original_code(code: str, name: str, tmp_path: Path) -> None:
    case = CASES[code, name]
    options = dict(case["options"])
    g = made(c_dim=options.pop("classes", 0), **options)
    if code == "stylegan_xl":
        g = by_class(g, features=FEATURES)
    layout = fill(official(g, SPRUNG.format(str(tmp_path / "sprung"))))
    snap = load_snapshot(official_file(tmp_path / "sg3.pkl", layout))
    output = images(snap.generator)
    assert list(output.shape) == case["output_shape"]
    assert some(output) == pytest.approx(case["output"], abs=2e-5)
    assert output.std() > 0.02
    assert not (tmp_path / "sprung").exists()
    facts = snap.config
    assert facts["cfg"] == f"stylegan3-{name[1]}"
    assert facts["codebase"].replace("-", "_") == (code if facts["classes"] else "stylegan3")
    assert (facts["layers"], facts["radial_filters"]) == (5, name[1] == "r")


@pytest.mark.slow
def test_inspection_and_the_generator_above_16_px(tmp_path: Path) -> None:
    g = by_class(made(c_dim=3), up=True)
    path = written(tmp_path / "xl.pkl", g)
    info = inspect_snapshot(path)
    assert info.safe
    assert (info.adapter, info.config["codebase"]) == ("stylegan3", "stylegan-xl")
    snap = load_snapshot(path)
    assert type(snap.generator) is architecture.SuperresGenerator
    assert torch.equal(images(snap.generator), images(g))
    save_snapshot(snap, snap.generator, tmp_path / "again.pkl")
    assert torch.equal(images(load_snapshot(tmp_path / "again.pkl").generator), images(g))


def test_sites_and_presets() -> None:
    plan = plan_of(made(channel_base=1024), preset="fast")
    rewritten = [d.site for d in plan.decisions if d.action == "rewrite"]
    assert rewritten == [f"synthesis.L{i}_{s}_12.demod.conv" for i, s in
                         ((0, 24), (1, 24), (2, 40), (3, 40), (4, 32))]  # fmt: skip
    assert {d.rule for d in plan.decisions if d.action == "rewrite"} == {"dw-pw"}
    kept = plan_of(made(**RADIAL), preset="fast").decisions
    assert {d.action for d in kept} == {"keep"}
    assert {d.reason for d in kept} == {"a 1x1 convolution is pointwise already"}


def ranked(g: nn.Module, rule: str, rank: int) -> Any:
    """``g`` with each 3x3 kernel at one rank."""
    data: Any = json.loads(plan_of(g, preset="fast").to_json())
    for row in data["decisions"]:
        if "demod" in row["site"]:
            row.update(action="rewrite", rule=rule, rank=rank)
    return apply(g, Plan.from_json(json.dumps(data)), init="svd", calibrate=0).model


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["dw-pw", pytest.param("pw-dw", marks=pytest.mark.extended)])
def test_full_rank_is_the_original_and_demodulation_knows_the_pair(rule: str) -> None:
    g = made(c_dim=3, channel_base=1024)
    assert (images(ranked(g, rule, 9)) - images(g)).abs().max() < 1e-4
    part = ranked(g, rule, 2)
    demods = [m for m in part.modules() if isinstance(m, architecture.Demodulation)]
    assert len(demods) == 5
    for demod in demods:
        assert isinstance(demod.conv, nn.Sequential)
        dense: Any = merged_module(demod.conv)
        styles = torch.randn(3, dense.in_channels)
        kernels = dense.weight[None] * styles[:, None, :, None, None]
        wanted = (kernels.square().sum((2, 3, 4)) + 1e-12).rsqrt()
        assert torch.allclose(demod(styles), wanted, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.extended
@pytest.mark.parametrize("options", [{}, RADIAL], ids=["-t", "-r"])
def test_width_is_followed_through_the_filters(options: Any, tmp_path: Path) -> None:
    g = made(channel_base=1024, **options)
    snap = load_snapshot(written(tmp_path / "sg3.pkl", g))
    whole = convert_file(snap, preset="none", width=1.0, init="svd", calibrate=0).models
    assert (images(whole["G_ema"]) - images(g)).abs().max() < 1e-5
    result = convert_file(snap, preset="none", width=0.5, init="svd", calibrate=8)
    # All maps but the image, the input's among them.
    assert [len(k) for k in result.main[1].kept.values()] == [8] * 6
    assert result.main[1].before.macs > 1.3 * result.main[1].after.macs
    save_snapshot(snap, result.models, tmp_path / "half.pkl")
    again = load_snapshot(tmp_path / "half.pkl")
    assert again.config["channels"] == [8] * 5
    assert torch.equal(images(again.generator), images(result.models["G_ema"]))


@pytest.mark.slow
def test_a_converted_file_is_written_and_read(tmp_path: Path) -> None:
    g = made(c_dim=3)
    snap = load_snapshot(written(tmp_path / "sg3.pkl", g))
    result = convert_file(snap, preset="fast", init="svd", calibrate=0)
    assert set(result.models) == {"G", "G_ema"}
    save_snapshot(snap, result.models, tmp_path / "fast.pkl")
    assert TEXT.encode() not in (tmp_path / "fast.pkl").read_bytes()
    again = load_snapshot(tmp_path / "fast.pkl")
    assert (again.config["source"], again.config["cfg"]) == ("dsconvert", "stylegan3-t")
    assert torch.equal(images(again.generator), images(result.models["G_ema"]))


@pytest.mark.slow
@pytest.mark.extended
def test_a_written_file_runs_without_dsconvert(tmp_path: Path) -> None:
    g = made(c_dim=3)
    snap = load_snapshot(written(tmp_path / "sg3.pkl", g))
    fast = convert_file(snap, preset="fast", init="svd", calibrate=0).models
    save_snapshot(snap, fast, tmp_path / "fast.pkl")
    z, c = arguments(g)
    torch.save({"z": z, "c": c}, tmp_path / "inputs.pt")
    names = ("fast.pkl", "inputs.pt", "image.pt")
    subprocess.run(
        [sys.executable, "-S", HERE / "official_like_loader.py", *(tmp_path / n for n in names)],
        check=True, env={**os.environ, "PYTHONPATH": str(Path(torch.__file__).parents[1])},
    )  # fmt: skip
    there = torch.load(tmp_path / "image.pt", weights_only=True)
    assert torch.allclose(there, images(fast["G_ema"])[0], atol=1e-5)


def test_the_source_is_the_module_and_stands_alone() -> None:
    text = ADAPTER.source()
    assert text == Path(architecture.__file__).read_text(encoding="utf-8")
    lines = [line.strip() for line in text.splitlines()]
    imports = {
        line.split()[1].split(".")[0] for line in lines if line.startswith(("import ", "from "))
    }
    assert imports == {"__future__", "math", "typing", "torch"}


@pytest.mark.slow
def test_the_adapter() -> None:
    check_adapter(ADAPTER, made(channel_base=512))
    with pytest.raises(AdapterError, match="no StyleGAN3 generator"):
        ADAPTER.describe(nn.Identity())


def test_classes_that_nothing_reads_are_unused() -> None:
    g = by_class(made())
    assert ADAPTER.unused(g) == ("mapping.embed",)
    assert ADAPTER.unused(by_class(made(c_dim=3))) == ADAPTER.unused(made()) == ()
    assert plan_of(g, preset="exact").remove == ("mapping.embed",)


def test_training_moves_the_means() -> None:
    g = made()
    synthesis: Any = g.synthesis
    layer, w = getattr(synthesis, synthesis.layer_names[1]), torch.randn(2, 14)
    x, before = torch.randn(2, layer.in_channels, 24, 24), float(layer.magnitude_ema)
    layer(x, w, update_emas=True)
    wanted = 0.999 * before + 0.001 * float(x.square().mean())
    assert float(layer.magnitude_ema) == pytest.approx(wanted, rel=1e-5)
    for twin in (made(), by_class(made(c_dim=3))):
        z, c = arguments(twin)
        mapping: Any = twin.mapping
        before, w = mapping.w_avg.clone(), mapping(z, c)[:, 0]
        mapping(z, c, update_emas=True)
        rows = before if mapping.c_dim else before[None]
        wanted = 0.998 * rows
        if mapping.c_dim:
            wanted = rows.clone()
            for row, label in zip(w, c.argmax(1), strict=True):
                wanted[label] = 0.998 * rows[label] + 0.002 * row
        else:
            wanted = wanted + 0.002 * w.mean(0)
        assert torch.allclose(mapping.w_avg.reshape(rows.shape), wanted, atol=1e-6)


def test_filters_are_low_pass() -> None:
    """By their response: one below the cutoff, nothing beyond the transition band."""
    taps, cutoff, width, rate = 48, 2.0, 1.0, 16.0
    at = (torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2) / rate
    line = architecture.kaiser_filter(taps, cutoff, width, rate).double()
    disc = architecture.jinc_filter(taps, cutoff, width, rate).double()
    for frequency, wanted in ((0.5, 1.0), (1.3, 1.0), (2.8, 0.0), (5.0, 0.0)):
        wave = torch.cos(2 * math.pi * frequency * at)
        assert float((line * wave).sum()) == pytest.approx(wanted, abs=0.02)
        turned = torch.cos(2 * math.pi * frequency * (0.6 * at[:, None] + 0.8 * at[None, :]))
        assert float((disc * turned).sum()) == pytest.approx(wanted, abs=0.02)


def _damaged(kind: str) -> Any:
    g = made(c_dim=3)
    synthesis: Any = g.synthesis
    layer: Any = getattr(synthesis, synthesis.layer_names[2])
    if kind == "kernel":
        layer.demod.conv.weight = nn.Parameter(torch.zeros(12, 12, 5, 5))
    elif kind == "before":
        layer.demod.conv.weight = nn.Parameter(torch.zeros(12, 3, 3, 3))
        layer.affine = architecture.FullyConnectedLayer(14, 3)
    elif kind == "bias":
        layer.bias = nn.Parameter(torch.zeros(5))
    elif kind == "affine":
        layer.affine = architecture.FullyConnectedLayer(14, 3)
    elif kind == "filter":
        layer.down_filter = torch.ones(3, 4)
    elif kind == "padding":
        layer.padding = [1, 2, 3, "4"]
    elif kind == "size":
        layer.padding = [40, 41, 40, 41]
    elif kind == "magnitude":
        layer.magnitude_ema = torch.ones(2)
    elif kind == "freqs":
        synthesis.input.freqs = torch.ones(12, 3)
    elif kind == "bandwidth":
        synthesis.input.bandwidth = 1e3
    elif kind == "mean":
        g.mapping.w_avg = torch.ones(3)
    elif kind == "classes":
        del g.mapping.embed
    elif kind == "last":
        getattr(synthesis, synthesis.layer_names[-1]).is_torgb = False
    return g


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("kernel", "neither 1x1 nor 3x3"),
        ("before", "does not fit the one before"),
        ("bias", "no bias of the kernel's size"),
        ("affine", "layer affine of the wrong size"),
        ("filter", "no usable down_filter"),
        ("padding", "a padding that is not four whole numbers"),
        ("size", "sizes do not lead to 32 pixels"),
        ("magnitude", "no magnitude_ema"),
        ("freqs", "no usable freqs"),
        ("bandwidth", "sampling rate can't carry"),
        ("mean", "no usable w_avg"),
        ("classes", "lacks embed"),
    ],
)
def test_a_damaged_file_is_refused_with_the_place(kind: str, said: str, tmp_path: Path) -> None:
    path = written(tmp_path / "sg3.pkl", _damaged(kind))
    with pytest.raises(CorruptSnapshotError, match=said):
        load_snapshot(path)


def test_a_generator_is_built_from_its_options() -> None:
    assert Generator(8, 0, 8, 16, **{"num_layers": 4, "channel_base": 64}).num_ws == 6
