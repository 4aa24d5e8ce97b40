"""Half precision, 8-bit weights, Core ML and TensorRT: what is measured, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsconvert import export_model, load_export, open_file
from dsconvert.cli import main
from dsconvert.data.pictures import psnr
from dsconvert.export.coreml import _known
from dsconvert.export.reduced import Sampled
from dsconvert.formats.official import new_snapshot, save_snapshot
from tests.made_models import moved_generator


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made, path = moved_generator(resolution=64, ngf=2), tmp_path_factory.mktemp("small") / "g.pkl"
    save_snapshot(new_snapshot(made), made, path)
    return path


def need_onnx() -> None:
    for module in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(module)


def measured(graph: Path, model: Path) -> float:
    """PSNR on latents of this test's own, with the graph's noise given as zero to both."""
    generator = open_file(model).generator
    z = torch.randn(6, generator.z_dim, generator=torch.Generator().manual_seed(77))
    with torch.no_grad():
        wanted = generator(z, torch.zeros(6, 0))
    return float(psnr(load_export(graph)(z), wanted).mean())


@pytest.fixture(scope="module")
def silent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator without noise, so that a graph without it makes the same images."""
    made = moved_generator(resolution=64, ngf=2)
    for module in made.modules():
        if type(module).__name__ == "NoiseInjection":
            module.weight.data.zero_()
    path = tmp_path_factory.mktemp("silent") / "g.pkl"
    save_snapshot(new_snapshot(made), made, path)
    return path


@pytest.mark.slow
@pytest.mark.extended
@pytest.mark.parametrize("dtype", ["fp16", "int8"])
def test_fewer_bits_are_measured_and_limited(
    dtype: str, silent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    need_onnx()
    whole, out = tmp_path / "whole.onnx", tmp_path / "small.onnx"
    assert main(["export", str(silent), "--out", str(whole), "--noise", "zero"]) == 0
    words = ["export", str(silent), "--noise", "zero", "--dtype", dtype, "--out"]
    capsys.readouterr()
    assert main([*words, str(out), "--json", "--least-psnr", "25"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["dtype"] == dtype
    assert found["psnr"] > 25
    # Other latents have about the same error.
    assert abs(found["psnr"] - measured(out, silent)) < 6
    assert found["error"] > 0
    assert out.stat().st_size == found["bytes"]
    if dtype == "fp16":  # this graph is so small that the scales of int8 outweigh its weights
        assert found["bytes"] < 0.7 * whole.stat().st_size
    before = sorted(p.name for p in tmp_path.iterdir())
    assert main([*words, str(tmp_path / "no.onnx"), "--least-psnr", "120"]) == 2
    assert "below the limit of 120 dB" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == before


class Plain(nn.Module):
    """Two convolutions: an image of noise, in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(4, 16, 3, padding=1), nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.last(torch.relu(self.first(x))))


def maps(n: int, generator: torch.Generator) -> tuple[Tensor]:
    return (torch.randn(n, 4, 8, 8, generator=generator),)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "bits"), [("prepared.onnx", 8), ("reduced-8.onnx", 16)])
def test_any_name_is_good_for_an_8_bit_graph(
    name: str, bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_onnx()
    import onnx

    real, judged = Sampled.judge, []

    def judge(sampled: Sampled, run: Any) -> Any:
        """Let 8-bit activations miss the limit where 16 are to be tried."""
        judged.append(real(sampled, run))
        return (0.0, None, 1.0) if bits == 16 and len(judged) == 1 else judged[-1]

    monkeypatch.setattr(Sampled, "judge", judge)
    made = export_model(Plain().eval(), tmp_path / name, inputs=maps, dtype="int8", least_psnr=5)
    assert made.psnr is not None
    assert made.psnr > 5
    assert made.activation_bits == bits
    assert [p.name for p in tmp_path.iterdir()] == [name]
    facts = {p.key for p in onnx.load(str(tmp_path / name)).metadata_props}
    assert facts >= {"dsconvert.noise", "dsconvert.planes"}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_weights_in_a_file_of_their_own_are_counted_and_go_with_their_graph(
    dtype: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_onnx()
    exporter = pytest.importorskip("torch.onnx._internal.exporter._onnx_program")
    if not hasattr(exporter, "_LARGE_MODEL_THRESHOLD"):
        pytest.skip("this torch has another way to tell large graphs")
    monkeypatch.setattr(exporter, "_LARGE_MODEL_THRESHOLD", 100)
    made = export_model(Plain().eval(), tmp_path / "a.onnx", inputs=maps, dtype=dtype)
    files = sorted(tmp_path.iterdir())
    assert sorted(made.files) == [str(f) for f in files]
    assert made.files[0] == made.path
    assert made.bytes == sum(f.stat().st_size for f in files)
    assert len(files) == (2 if dtype == "fp32" else 1)
    assert load_export(made.path)(*maps(2, torch.Generator())).shape == (2, 3, 8, 8)


@pytest.mark.parametrize("name", ["a.pt2", "a.xml", "a.safetensors", "a.mlpackage"])
def test_fewer_bits_are_for_onnx(name: str, small: Path, tmp_path: Path, capsys) -> None:
    words = ["export", str(small), "--dtype", "fp16", "--out", str(tmp_path / name)]
    assert main(words) == 2
    assert "--dtype is for" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_tensorrt_needs_a_card(small: Path, tmp_path: Path, capsys) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert main(["export", str(small), "--out", str(tmp_path / "a.ep")]) == 2
    assert "needs an NVIDIA GPU" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.extended
def test_core_ml_is_built_and_said_not_to_have_run(small: Path, tmp_path: Path, capsys) -> None:
    pytest.importorskip("coremltools")
    out = tmp_path / "a.mlpackage"
    assert main(["export", str(small), "--out", str(out)]) == 0
    assert "it was not run" in " ".join(capsys.readouterr().out.split())
    assert (out / "Manifest.json").is_file()
    assert main(["export", str(small), "--out", str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    other = tmp_path / "other.mlpackage"
    other.mkdir()
    (other / "mine").write_text("mine")
    assert main(["export", str(small), "--out", str(other), "--overwrite"]) == 2
    assert [p.name for p in other.iterdir()] == ["mine"]


def test_core_ml_without_its_package(small: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(__import__("sys").modules, "coremltools", None)
    assert main(["export", str(small), "--out", str(tmp_path / "a.mlpackage")]) == 2
    assert 'pip install "coremltools' in capsys.readouterr().err


@pytest.mark.slow
def test_core_ml_gets_operators_that_its_tools_read() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = F.max_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 2)
            return F.unfold(torch.ops.aten.alias.default(x), 3)

    x = torch.randn(1, 2, 8, 8)
    program = torch.export.export(Odd(), (x,), strict=False)
    known = _known(program)
    names = [str(n.target) for n in known.graph.nodes if n.op == "call_function"]
    assert any("reflection_pad2d" in name for name in names)
    assert any("im2col" in name for name in names)
    assert not any("alias" in name or "aten.index" in name for name in names)
    pools = [n for n in known.graph.nodes if "max_pool2d" in str(n.target)]
    assert all(len(n.args) >= 3 for n in pools)
    assert pools
    assert torch.equal(known.module()(x), Odd()(x))
