"""Whatever the commands open can be exported."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from dsconvert import open_file
from dsconvert.cli import main
from dsconvert.config.choices import FORMATS, SUFFIXES
from dsconvert.errors import ExportError, UsageError
from dsconvert.export import GRAPHS
from dsconvert.formats.export_file import export_file
from dsconvert.formats.safetensors.compare import same_images
from tests.models import decoder, latents

if TYPE_CHECKING:
    from pathlib import Path

NET = """
from torch import nn
class G(nn.Module):
    def __init__(self):
        super().__init__()
        self.main = nn.Sequential(nn.ConvTranspose2d(8, 8, 4), nn.ReLU(), nn.Conv2d(8, 3, 3))
    def forward(self, input):
        return self.main(input[:, :, None, None])
"""


@pytest.mark.slow
def test_a_checkpoint_of_another_codebase(fastgan_file: Path, tmp_path: Path) -> None:
    file = open_file(fastgan_file)
    made = export_file(file, tmp_path / "g.pt2")
    assert list(made.inputs) == ["input", "noise"]
    pytest.importorskip("safetensors")
    out = tmp_path / "g.safetensors"
    made = export_file(file, out, noise="zero")
    assert made.error < 1e-6  # not every processor takes the same kernel for a tensor elsewhere
    assert sorted(p.name for p in tmp_path.glob("g.*")) == ["g.pt2", "g.safetensors"]
    again = open_file(out)
    z = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, two = (again.generator(z)[0] for _ in range(2))
    assert torch.equal(one, two)  # without noise
    assert list(export_file(again, tmp_path / "again.pt2").inputs) == ["input", "noise"]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["pt2", "safetensors"])
def test_a_module_of_the_users_own(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    suffix: str,
) -> None:
    if suffix == "safetensors":
        pytest.importorskip("safetensors")
    monkeypatch.chdir(tmp_path)
    name = f"net_to_export_{suffix}"
    (tmp_path / f"{name}.py").write_text(NET)
    scope: dict[str, type[nn.Module]] = {}
    exec(NET, scope)
    torch.save({"nested": {"g": scope["G"]().state_dict()}}, tmp_path / "g.pth")
    command = ["export", "g.pth", "--module", f"{name}:G", "--key", "nested.g"]
    assert main([*command, "--out", f"a.{suffix}"]) == 2
    error = capsys.readouterr().err
    assert "--input 256" in error
    assert error.count("\n") == 1
    assert main([*command, "--input", "8", "--out", f"a.{suffix}"]) == 0
    assert "loaded again" in capsys.readouterr().out
    assert not list(tmp_path.glob(".dsconvert*"))
    if suffix == "safetensors":
        options = ["--module", f"{name}:G", "--input", "8"]
        assert main(["export", "a.safetensors", *options, "--out", "b.pt2"]) == 0


def test_a_kind_that_nobody_rebuilds_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("safetensors")
    from dsconvert_adapters.stylegan3 import Generator, StyleGan3

    from dsconvert import export_model
    from dsconvert.adapter import Adapter
    from dsconvert.errors import AdapterError
    from tests.adapters.stylegan3_files import SMALL

    monkeypatch.setattr(StyleGan3, "build", Adapter.build)
    g = Generator(z_dim=4, w_dim=4, img_resolution=16, **SMALL)
    with pytest.raises(AdapterError, match=r"'stylegan3' can't rebuild .* export to another"):
        export_model(g, tmp_path / "g.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_model_of_no_finite_image_is_named(tmp_path: Path) -> None:
    model = decoder()
    model.head.bias.data[0] = float("nan")
    with pytest.raises(ExportError, match="the model itself makes values that are not finite"):
        same_images(model, model, tmp_path / "g.safetensors", latents)


def test_unknown_formats_are_refused_before_any_work(fastgan_file: Path, tmp_path: Path) -> None:
    file = open_file(fastgan_file)
    with pytest.raises(UsageError, match=r"which format .*\.mlpackage, .*safetensors.* page, hub"):
        export_file(file, tmp_path / "g.bin")
    with pytest.raises(UsageError, match=r"format hub is a folder: dsconvert\.save_pretrained"):
        export_file(file, tmp_path / "g.onnx", format="hub")
    with pytest.raises(UsageError, match=r"called 'tflite'; choose onnx, .*page, hub"):
        export_file(file, tmp_path / "g.onnx", format="tflite")


def test_every_format_of_one_file_has_its_suffix() -> None:
    assert {*SUFFIXES.values(), "page", "hub"} == set(FORMATS)
    assert set(GRAPHS) < set(SUFFIXES.values())
