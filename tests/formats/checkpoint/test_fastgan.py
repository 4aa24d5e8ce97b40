"""FastGAN-pytorch's files: read, converted, written, and loaded there again."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from dsconvert_adapters.fastgan_pytorch import Generator

from dsconvert import convert_file, open_file, save_file
from dsconvert.cli import main
from dsconvert.errors import CorruptSnapshotError, UsageError
from dsconvert.formats.checkpoint import load_checkpoint, save_checkpoint
from dsconvert.formats.restructure import restructure
from tests.made_models import drifted, fastgan_content, moved
from tests.models import output

Z = torch.randn(2, 16, generator=torch.Generator().manual_seed(4))


def test_both_generators_are_read(fastgan_file: Path) -> None:
    file = load_checkpoint(fastgan_file)
    assert file.generators == ("g_ema", "g")
    assert file.config == {"im_size": 256, "ngf": 4, "nz": 16, "nc": 3}
    content = torch.load(fastgan_file, weights_only=True)
    for made, saved in zip(file.generator.parameters(), content["g_ema"], strict=True):
        assert torch.equal(made, saved)
    assert torch.equal(file.module("g").to_big.weight_orig, content["g"]["to_big.weight_orig"])
    large, small = output(file.generator, Z)
    assert large.shape == (2, 3, 256, 256)
    assert small.shape == (2, 3, 128, 128)
    assert (large[0] - large[1]).std() > 0.005  # pictures, not a constant
    assert not torch.allclose(large, output(file.module("g"), Z)[0], atol=1e-3)


@pytest.mark.parametrize(
    "preset", ["exact", pytest.param("paper", marks=pytest.mark.extended), "fast"]
)
def test_a_converted_file_makes_the_same_pictures_when_read_back(
    fastgan_file: Path, tmp_path: Path, preset: str
) -> None:
    file = open_file(fastgan_file)
    result = convert_file(file, preset=preset, init="svd", calibrate=0)
    out = tmp_path / "fast.pth"
    save_file(file, result.models, out)
    back = open_file(out)
    assert back.generators == ("g_ema", "g")
    for key in back.generators:
        for a, b in zip(output(back.module(key), Z), output(result.models[key], Z), strict=True):
            assert torch.equal(a, b)
    if preset == "exact":
        same, original = output(back.generator, Z)[0], output(file.generator, Z)[0]
        assert (same - original).abs().max() < 1e-5 * original.abs().max()


@pytest.mark.slow
def test_a_user_without_dsconvert_can_load_it(fastgan_file: Path, tmp_path: Path) -> None:
    """``restructure.py`` alone, and the original class: what the docs tell FastGAN's users."""
    file = open_file(fastgan_file)
    result = convert_file(file, preset="fast", init="svd", calibrate=0)
    save_file(file, result.models, tmp_path / "fast.pth")
    content = torch.load(tmp_path / "fast.pth", weights_only=True)
    generator = Generator(ngf=4, nz=16, im_size=256)
    restructure(generator, content["dsconvert"]["recipes"]["g"])
    generator.load_state_dict(content["g"])
    assert torch.equal(output(generator.eval(), Z)[0], output(result.models["g"], Z)[0])
    # The list goes in as theirs does: parameter by parameter.
    names = [n for n, _ in generator.named_parameters()]
    assert [p.shape for p in content["g_ema"]] == [generator.get_parameter(n).shape for n in names]
    assert "opt_g" not in content
    assert torch.equal(content["d"]["down.weight"], torch.ones(2))


def test_restructure_needs_nothing_but_torch() -> None:
    from dsconvert.formats import restructure as module

    text = Path(str(module.restructure.__code__.co_filename)).read_text()
    imports = [x.split()[1] for x in text.splitlines() if x.startswith(("import ", "from "))]
    assert {name.split(".")[0] for name in imports} == {
        "__future__",
        "collections",
        "typing",
        "torch",
    }


@pytest.mark.slow
def test_the_commands_work_on_it(
    fastgan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "fast.safetensors")
    source = str(fastgan_file)
    assert (
        main(
            [
                source,
                "--out",
                out,
                "--preset",
                "exact",
                "--drop",
                "opt_g",
                "--json",
                "--calibrate",
                "0",
            ]
        )
        == 0
    )
    converted = json.loads(capsys.readouterr().out)["converted"]
    assert list(converted) == ["g_ema"]  # what a safetensors file holds
    assert main(["inspect", out, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["adapter"] == "fastgan_pytorch"
    assert facts["converted"]
    assert facts["safe"]
    assert main(["report", source, out, "--json"]) == 0
    costs = json.loads(capsys.readouterr().out)
    assert costs["other_cost"]["macs"] < 0.7 * costs["cost"]["macs"]
    assert main(["generate", out, "--seeds", "0-1", "--out", str(tmp_path / "g.png")]) == 0
    capsys.readouterr()
    sheet = str(tmp_path / "c.png")
    assert main(["compare", source, out, "--seeds", "0-1", "--out", sheet, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["psnr_db_mean"] > 80
    assert main(["generate", out, "--class", "1", "--out", sheet, "--overwrite"]) == 2
    assert "unconditional" in capsys.readouterr().err


def test_a_list_of_another_length_is_refused(fastgan_file: Path, tmp_path: Path) -> None:
    content = torch.load(fastgan_file, weights_only=True)
    content["g_ema"] = content["g_ema"][:-1]
    torch.save(content, tmp_path / "short.pth")
    with pytest.raises(Exception, match="g_ema has 43 tensors and g 44"):
        load_checkpoint(tmp_path / "short.pth")


def test_tensors_that_do_not_fit_are_named(fastgan_file: Path, tmp_path: Path) -> None:
    content = torch.load(fastgan_file, weights_only=True)
    content["g"]["to_big.weight_orig"] = torch.zeros(3, 5, 3, 3)
    torch.save({"g": content["g"]}, tmp_path / "odd.pth")
    with pytest.raises(CorruptSnapshotError, match=r"to_big\.weight_orig"):
        _ = load_checkpoint(tmp_path / "odd.pth").generator


def test_only_generators_of_the_file_can_be_replaced(fastgan_file: Path, tmp_path: Path) -> None:
    file = load_checkpoint(fastgan_file)
    with pytest.raises(UsageError, match="no generator G_ema"):
        save_checkpoint(file, {"G_ema": file.generator}, tmp_path / "x.pth")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [256, 512, 1024])
def test_the_original_code_agrees(fastgan_code: ModuleType, tmp_path: Path, size: int) -> None:
    """Official classes make the file; official classes load what comes back."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        raw = moved(fastgan_code.Generator(ngf=8, nz=16, im_size=size))
    averaged = drifted(raw)
    torch.save(fastgan_content(raw, averaged), tmp_path / "all_1.pth")
    file = open_file(tmp_path / "all_1.pth")
    for key, official in {"g": raw, "g_ema": averaged}.items():
        for a, b in zip(output(file.module(key), Z), output(official.eval(), Z), strict=True):
            assert (a - b).abs().max() < 1e-5
    result = convert_file(file, preset="fast", init="svd", calibrate=0)
    save_file(file, result.models, tmp_path / "fast.pth")
    content = torch.load(tmp_path / "fast.pth", weights_only=True)
    theirs = restructure(
        fastgan_code.Generator(ngf=8, nz=16, im_size=size), content["dsconvert"]["recipes"]["g"]
    )
    theirs.load_state_dict(content["g"])
    assert (output(theirs.eval(), Z)[0] - output(result.models["g"], Z)[0]).abs().max() < 1e-5
