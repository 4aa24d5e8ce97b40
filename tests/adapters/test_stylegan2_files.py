"""Files of the persistence kind: read without running their text, written with ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dsconvert_adapters.stylegan2 import ADAPTER, Generator, network
from PIL import Image
from torch import nn

from dsconvert.adapter import PERSISTENCE
from dsconvert.cli import main
from dsconvert.errors import (
    AdapterError,
    CorruptSnapshotError,
    UnsafeSnapshotError,
    UnsupportedSnapshotError,
)
from dsconvert.formats.convert_file import convert_file
from dsconvert.formats.official import inspect_snapshot, load_snapshot, new_snapshot, save_snapshot
from dsconvert.formats.official.dump import Dumper
from dsconvert.formats.official.persistence import node_of
from dsconvert.safepickle.nodes import DictNode, Global, Record
from dsconvert.safepickle.write import write_file
from tests.adapters.stylegan2_files import LAYOUTS, made, official, official_file
from tests.adapters.stylegan2_reference import image

HERE = Path(__file__).parent
SPRUNG = "import pathlib\npathlib.Path({!r}).mkdir()\nclass Generator: pass\n"


def inputs(g: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return ADAPTER.sampler(g)(2, torch.Generator().manual_seed(4))


@pytest.mark.parametrize("architecture", ["skip", "resnet", "orig"])
def test_an_official_layout_gives_the_image_by_the_book(architecture: str, tmp_path: Path) -> None:
    g = made(architecture=architecture, c_dim=3)
    path = official_file(tmp_path / "sg2.pkl", g, SPRUNG.format(str(tmp_path / "sprung")))
    snap = load_snapshot(path)
    assert snap.config["architecture"] == architecture
    assert snap.config["source"].startswith("unknown text")
    z, c = inputs(g)
    wanted = image(g, z, c, psi=0.7)
    read = snap.generator(z, c, truncation_psi=0.7, noise_mode="const")
    assert (read - wanted).abs().max() < 1e-4
    assert not (tmp_path / "sprung").exists()
    info = inspect_snapshot(path)
    assert info.safe
    assert info.adapter == "stylegan2"
    assert [e.type for e in info.entries if e.key == "G_ema"] == ["Generator (persistent)"]


def in_a_bare_process(path: Path, tmp_path: Path, *key: str) -> torch.Tensor:
    out = tmp_path / "image.pt"
    script = HERE / "official_like_loader.py"
    subprocess.run(
        [sys.executable, "-S", str(script), str(path), str(tmp_path / "inputs.pt"), str(out), *key],
        check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(_third_party())},
    )  # fmt: skip
    return torch.load(out, weights_only=True)


def _third_party() -> list[str]:
    return [str(Path(torch.__file__).parents[1])]


@pytest.mark.slow
def test_what_is_written_runs_without_dsconvert(tmp_path: Path) -> None:
    """The main job: official layout in, fast file out, the same image in a bare process."""
    g = made(c_dim=3)
    path, out = official_file(tmp_path / "sg2.pkl", g), tmp_path / "fast.pkl"
    snap = load_snapshot(path)
    result = convert_file(snap, preset="fast", init="svd", calibrate=0)
    assert set(result.models) == {"G", "G_ema"}
    save_snapshot(snap, result.models, out)
    z, c = inputs(g)
    torch.save({"z": z, "c": c}, tmp_path / "inputs.pt")
    here = result.models["G_ema"](z, c, noise_mode="const")
    assert torch.allclose(in_a_bare_process(out, tmp_path), here, atol=1e-4)
    assert b"official = True" not in out.read_bytes()
    again = load_snapshot(out)
    assert again.config["source"] == "dsconvert"
    assert torch.equal(again.generator(z, c, noise_mode="const"), here)
    # Converting a converted file finds nothing left to do, and breaks nothing.
    twice = convert_file(again, preset="exact", calibrate=0).models["G_ema"]
    assert torch.allclose(twice(z, c, noise_mode="const"), here, atol=1e-5)


@pytest.mark.slow
def test_a_generator_that_is_not_replaced_gets_our_source_too(tmp_path: Path) -> None:
    """Foreign text in ``G`` must not ride along in a file that converts ``G_ema`` alone."""
    g = made()
    marker = tmp_path / "sprung"
    path, out = tmp_path / "sg2.pkl", tmp_path / "out.pkl"
    official_file(path, g, SPRUNG.format(str(marker)))
    snap = load_snapshot(path)
    save_snapshot(snap, snap.generator, out)
    assert b"mkdir" not in out.read_bytes()
    z, c = inputs(g)
    torch.save({"z": z, "c": c}, tmp_path / "inputs.pt")
    shown = in_a_bare_process(out, tmp_path, "G")
    assert torch.allclose(shown, g(z, c, noise_mode="const"), atol=1e-4)
    assert not marker.exists()


def test_the_source_is_the_module_and_stands_alone() -> None:
    text = ADAPTER.source()
    assert text == Path(network.__file__).read_text(encoding="utf-8")
    lines = [line.strip() for line in text.splitlines()]
    imports = {
        line.split()[1].split(".")[0] for line in lines if line.startswith(("import ", "from "))
    }
    assert imports == {"__future__", "math", "typing", "torch"}
    scope: dict[str, Any] = {"__name__": "alone"}
    exec(text, scope)
    assert {name for _, name in ADAPTER.classes} <= scope.keys()


def _persistent(text: str, kind: str = "FullyConnectedLayer") -> Record:
    layer = LAYOUTS[kind]()
    state = Dumper(ADAPTER).module(nn.Module(), "").ops[0][1].items
    assert isinstance(layer, nn.Module)
    return node_of(kind, text, list(state))


@pytest.mark.slow
def test_unknown_source_beside_the_generator_is_refused(tmp_path: Path) -> None:
    path = official_file(tmp_path / "sg2.pkl", made(), D=_persistent("import os\n"))
    with pytest.raises(UnsafeSnapshotError, match=r"FullyConnectedLayer at D: brings source") as e:
        load_snapshot(path)
    assert "drop=('D',)" in str(e.value)
    assert not inspect_snapshot(path).safe
    snap = load_snapshot(path, drop=("D",))
    save_snapshot(snap, snap.generator, tmp_path / "out.pkl")
    assert b"import os\n" not in (tmp_path / "out.pkl").read_bytes()


def test_known_source_beside_the_generator_is_carried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "released = True\n"
    digest = __import__("hashlib").sha256(text.encode()).hexdigest()
    monkeypatch.setattr(type(ADAPTER), "known_sources", {digest: "somewhere: d.py"})
    path = official_file(tmp_path / "sg2.pkl", made(), D=_persistent(text))
    snap = load_snapshot(path)
    save_snapshot(snap, snap.generator, tmp_path / "out.pkl")
    assert text.encode() in (tmp_path / "out.pkl").read_bytes()


def _names(path: Path, *names: str) -> Path:
    """A file whose G_ema has children of these persistent classes."""
    children = [(n, node_of(n, "x", [])) for n in names]
    root = "Generator" if len(names) > 1 else names[0]
    node = node_of(root, "x", [("_modules", DictNode([(k, v) for k, v in children]))])
    write_file(path, DictNode([("G_ema", node)]), None, overwrite=False)
    return path


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("TriPlaneGenerator",), r"EG3D"),
        (("Unheard",), r"torch_utils\.persistence\.Unheard.*no installed adapter"),
    ],
)
def test_relatives_are_refused_by_name(names: tuple[str, ...], said: str, tmp_path: Path) -> None:
    path = _names(tmp_path / "relative.pkl", *names)
    with pytest.raises(UnsupportedSnapshotError, match=said):
        load_snapshot(path)


def _damage(kind: str) -> Any:
    g = made()
    synthesis: Any = g.synthesis
    if kind == "weight":
        synthesis.b8.conv0.demod.conv.weight = nn.Parameter(torch.zeros(3, 3, 3, 3))
    elif kind == "affine":
        synthesis.b8.conv1.affine = network.FullyConnectedLayer(16, 3)
    elif kind == "rgb":
        synthesis.b16.torgb.conv.bias = nn.Parameter(torch.zeros(5))
    elif kind == "const":
        synthesis.b4.const = nn.Parameter(torch.zeros(2, 4, 4))
    elif kind == "noise":
        synthesis.b8.conv1.noise.noise_const = torch.zeros(4, 4)
    elif kind == "filter":
        synthesis.b8.resample_filter = torch.ones(3, 3)
    elif kind == "block":
        del synthesis.b8
        synthesis.b7 = nn.Module()
        synthesis.b7 = network.FullyConnectedLayer(2, 2)
    elif kind == "resolution":
        synthesis.img_resolution = g.img_resolution = 24
    elif kind == "layers":
        g.mapping.num_layers = 5
    elif kind == "more layers":
        g = made(mapping_kwargs={"num_layers": 100})
        g.mapping.num_layers = 101
    elif kind == "w_avg":
        g.mapping.w_avg = torch.zeros(3)
    elif kind == "activation":
        synthesis.b8.conv1.activation = "os.system"
    elif kind == "up":
        synthesis.b8.conv1.up = 7
    return g


@pytest.mark.parametrize(
    "kind",
    ["weight", "affine", "rgb", "const", "noise", "filter", "block", "resolution", "layers",
     "more layers",     "w_avg", "activation", "up"],
)  # fmt: skip
def test_parts_that_do_not_fit_are_named(kind: str, tmp_path: Path) -> None:
    path = official_file(tmp_path / "bad.pkl", _damage(kind))
    with pytest.raises(CorruptSnapshotError, match=r"G_ema.* in .*bad\.pkl"):
        load_snapshot(path)


def test_half_a_file_names_no_traceback(tmp_path: Path) -> None:
    path = official_file(tmp_path / "sg2.pkl", made())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CorruptSnapshotError):
        load_snapshot(path)


@pytest.mark.slow
def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = official_file(tmp_path / "sg2.pkl", made()), tmp_path / "fast.pkl"
    assert main(["inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["cfg"] == "stylegan2"
    code = main(
        [
            str(path),
            "--out",
            str(out),
            "--preset",
            "fast",
            "--calibrate",
            "4",
            "--polish",
            "0",
            "--json",
            "--quiet",
        ]
    )
    assert code == 0
    converted = json.loads(capsys.readouterr().out)["converted"]["G_ema"]
    assert converted["after"]["macs"] < converted["before"]["macs"]
    sheet = str(tmp_path / "sheet.png")
    assert main(["compare", str(path), str(out), "--seeds", "0", "--out", sheet, "--quiet"]) == 0
    images = str(tmp_path / "images.png")
    assert main(["generate", str(out), "--seeds", "0-1", "--out", images, "--quiet"]) == 0


@pytest.mark.slow
def test_latents_are_truncated_as_the_official_script_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], snapshot_file: Path
) -> None:
    g = made()
    path = official_file(tmp_path / "sg2.pkl", g)
    z = torch.from_numpy(np.random.RandomState(5).randn(1, g.z_dim)).float()
    for psi in (1.0, 0.5, 0.0):
        out = tmp_path / f"{psi}.png"
        words = ["generate", str(path), "--seeds", "5", "--out", str(out), "--quiet"]
        assert main([*words, "--trunc", str(psi)]) == 0
        torch.manual_seed(5)
        want = g(z, torch.zeros(1, 0), truncation_psi=psi)
        shown = torch.from_numpy(np.array(Image.open(out).convert("RGB"))).permute(2, 0, 1)
        pixels = ((want[0].clamp(-1, 1) + 1) * 127.5).round()
        assert (shown.float() - pixels).abs().max() <= 1
    capsys.readouterr()
    words = ["generate", str(snapshot_file), "--seeds", "0", "--out", str(tmp_path / "no.png")]
    assert main([*words, "--trunc", "0.7"]) == 2
    assert "no mapping network" in capsys.readouterr().err
    assert not (tmp_path / "no.png").exists()


def test_there_is_no_truncation_without_a_mean() -> None:
    g = made()
    assert ADAPTER.truncation(g, 0.5) == {"truncation_psi": 0.5}
    g.mapping.w_avg_beta = None
    with pytest.raises(AdapterError, match="mean of its latents"):
        ADAPTER.truncation(g, 0.5)


def test_a_generator_of_ours_has_a_file_format(tmp_path: Path) -> None:
    g = made()
    save_snapshot(new_snapshot(g), g, tmp_path / "new.pkl")
    read = load_snapshot(tmp_path / "new.pkl").generator
    assert type(read) is Generator
    assert read.state_dict().keys() == g.state_dict().keys()


def test_no_plain_object_may_take_a_persistent_class_name(tmp_path: Path) -> None:
    stray = Record("new", Global(PERSISTENCE, "Generator"), ())
    path = official_file(tmp_path / "sg2.pkl", made(), extra=stray)
    with pytest.raises(UnsafeSnapshotError, match=r"persistence\.Generator at extra"):
        load_snapshot(path)


def test_layouts_differ_from_ours() -> None:
    """The files of these tests are official in shape: kernels and noise in the layer itself."""
    layer: Any = official(made().synthesis.b8.conv0)  # type: ignore[union-attr]
    names = {"weight", "bias", "noise_strength"}
    assert {n for n, _ in layer.named_parameters(recurse=False)} == names
    assert layer.weight.shape == (10, 10, 3, 3)
