"""Files of CycleGAN, pix2pix and CUT: read, converted with pictures, loaded there again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from dsconvert_adapters.cyclegan import ADAPTER, ResnetGenerator, UnetGenerator
from torch import Tensor, nn

from dsconvert import convert, convert_file, open_file, picture_inputs, save_file
from dsconvert.adapter import adapters
from dsconvert.cli import main
from dsconvert.errors import (
    AdapterError,
    CorruptSnapshotError,
    SnapshotError,
    UnsupportedSnapshotError,
    UsageError,
)
from dsconvert.formats.restructure import restructure
from tests.adapters.original_code import NETWORKS, SAVED, every, image_to_image, moved
from tests.upscalers import picture_folder

SVD: dict[str, Any] = {"preset": "fast", "init": "svd", "calibrate": 0}
NEEDED = pytest.mark.skipif(
    not any(a.name == "cyclegan" for a in adapters()),
    reason="the entry point of the adapter is not installed: pip install -e . again",
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return picture_folder(tmp_path_factory.mktemp("pictures"), side=40)


def opened(path: Path, **options: Any) -> Any:
    return open_file(path, adapters=[ADAPTER], **options)


def run(model: nn.Module, pictures: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(pictures)


def random_picture(side: int = 32) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(5)) * 2 - 1


def written(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def seeded(model: nn.Module) -> nn.Module:
    """Give ``model`` weights that move every pixel."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, 0, 0.2)
        return moved(model)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_the_original_code_s_images(name: str) -> None:
    """The files and the expected images were made by the original code."""
    expected = torch.load(SAVED / f"{name}.expected.pt", weights_only=True)
    unet = name == "pix2pix"
    picture = nn.functional.interpolate(
        expected["small"], size=128 if unet else 32, mode="bilinear"
    )
    file = opened(SAVED / f"{name}.pth")
    made = run(file.generator, picture)
    assert made.shape == picture.shape
    assert expected["image"].std() > 0.1
    assert (every(8 if unet else 2, made) - expected["image"]).abs().max() < 1e-4
    options = NETWORKS[name]
    facts = ADAPTER.describe(file.generator)
    assert (facts["cfg"], facts["norm"]) == (options["netG"], options["norm"])
    assert facts["antialiased"] == (name == "cut")
    spec = ADAPTER.pictures(file.generator)
    assert (spec.values, spec.size, spec.multiple) == (
        ("signed", 128, 128) if unet else ("signed", 128, 4)
    )


VARIANTS: dict[str, Any] = {
    "resnet": lambda: ResnetGenerator(ngf=8, n_blocks=1),
    "batch norm, dropout": lambda: ResnetGenerator(
        ngf=4, n_blocks=1, norm="batch", use_dropout=True
    ),
    "no norm, zeros": lambda: ResnetGenerator(ngf=4, n_blocks=1, norm="none", reflect=False),
    "grey to colour": lambda: ResnetGenerator(1, 3, 4, n_blocks=3, reflect=False, use_dropout=True),
    "cut": lambda: ResnetGenerator(ngf=8, n_blocks=1, blur_down=True, blur_up=True),
    "cut, filters up": lambda: ResnetGenerator(ngf=4, n_blocks=1, norm="batch", blur_up=True),
    "unet": lambda: UnetGenerator(ngf=4, num_downs=5),
    "unet, instance norm": lambda: UnetGenerator(ngf=2, num_downs=6, norm="instance"),
    "unet, no norm": lambda: UnetGenerator(ngf=2, num_downs=5, norm="none"),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_configuration_is_read_off_names_and_shapes(name: str) -> None:
    model = seeded(VARIANTS[name]())
    state = ADAPTER.states(model.state_dict())["state_dict"]
    made = ADAPTER.make(ADAPTER.read_config(state))
    made.load_state_dict(state)
    assert ADAPTER.describe(made) == ADAPTER.describe(model)
    assert [type(m) for m in made.modules()] == [type(m) for m in model.modules()]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["resnet", *(pytest.param(n, marks=pytest.mark.extended) for n in ("cut", "unet"))],
)
def test_there_and_back(name: str, pictures: Path, tmp_path: Path) -> None:
    """Ranks and fewer channels; the recipe serves the unmodified architecture."""
    model = seeded(VARIANTS[name]())
    path = written(model.state_dict(), tmp_path / "latest_net_G.pth")
    file = opened(path, inputs=picture_inputs(pictures, size=32, values="signed"))
    result = convert_file(file, preset="fast", width=0.5, calibrate=8)
    made, x = result.main[1].model, random_picture()
    assert result.main[1].kept
    assert all(m.num_features in (4, 8, 16) for m in made.modules() if _is_instance(m))
    save_file(file, result.models, tmp_path / "out.pth")
    assert torch.equal(run(opened(tmp_path / "out.pth").generator, x), run(made, x))
    content = torch.load(tmp_path / "out.pth", weights_only=True)
    assert set(content) == {"state_dict", "dsconvert"}
    theirs = restructure(VARIANTS[name](), content["dsconvert"])
    theirs.load_state_dict(content["state_dict"])
    assert torch.equal(run(theirs, x), run(made, x))


@pytest.mark.extended
def test_a_second_conversion_starts_from_the_converted_file(tmp_path: Path) -> None:
    file = opened(SAVED / "cut.pth")
    save_file(file, convert_file(file, **SVD).models, tmp_path / "out.pth")
    again = opened(tmp_path / "out.pth")
    result = convert_file(again, **SVD)
    save_file(again, result.models, tmp_path / "again.pth")
    x = random_picture()
    assert torch.equal(
        run(opened(tmp_path / "again.pth").generator, x), run(result.main[1].model, x)
    )


def _is_instance(module: nn.Module) -> bool:
    return isinstance(module, nn.InstanceNorm2d)


@pytest.mark.extended
@pytest.mark.parametrize("name", ["cyclegan", "cut", "pix2pix"])
def test_full_rank_is_the_original(name: str, tmp_path: Path) -> None:
    file = opened(SAVED / f"{name}.pth")
    made = convert_file(file, preset="exact", init="svd", calibrate=0).main[1].model
    x = random_picture(128 if name == "pix2pix" else 32)
    assert (run(made, x) - run(file.generator, x)).abs().max() < 1e-4


@pytest.mark.extended
def test_pictures_are_needed(pictures: Path) -> None:
    model = seeded(VARIANTS["resnet"]())
    with pytest.raises(UsageError, match=r"reads pictures, and none are given: .*--init svd"):
        convert(model, adapter=ADAPTER)
    blind = convert(model, adapter=ADAPTER, **SVD)
    inputs = picture_inputs(pictures, size=32, values="signed")
    fitted = convert(model, adapter=ADAPTER, inputs=inputs, preset="fast", calibrate=16)
    (crops,) = inputs.held_out(8, torch.Generator().manual_seed(1))
    wanted = run(model, crops)
    errors = [float((run(m, crops) - wanted).square().mean()) for m in (fitted, blind)]
    assert errors[0] < 0.9 * errors[1]


@pytest.mark.slow
def test_files_of_other_times_and_wrappers(tmp_path: Path) -> None:
    """Statistics that torch 0.3 saved with instance norms, DataParallel, half precision."""
    model, x = seeded(VARIANTS["resnet"]()), random_picture()
    state = {f"module.{k}": v.half() for k, v in model.state_dict().items()}
    path = written(state, tmp_path / "in.pth")
    file = opened(path)
    assert (run(file.generator, x) - run(model, x)).abs().max() < 0.05
    save_file(file, convert_file(file, **SVD).models, tmp_path / "out.pth")
    kept = torch.load(tmp_path / "out.pth", weights_only=True)["state_dict"]
    assert {v.dtype for v in kept.values()} == {torch.float16}
    assert all(k.startswith("module.") for k in kept)
    assert opened(tmp_path / "out.pth").converted
    old = {**model.state_dict(), "model.2.running_mean": torch.ones(8)}
    old["model.2.num_batches_tracked"] = torch.tensor(3)
    assert torch.equal(run(opened(written(old, path)).generator, x), run(model, x))


def test_other_files_are_refused(tmp_path: Path) -> None:
    state = VARIANTS["resnet"]().state_dict()
    path = tmp_path / "in.pth"
    # A discriminator stands beside each generator.
    discriminator = {"model.0.weight": torch.ones(8, 3, 4, 4), "model.2.weight": torch.ones(1)}
    with pytest.raises(UnsupportedSnapshotError, match="no installed adapter knows"):
        opened(written(discriminator, path))
    with pytest.raises(CorruptSnapshotError, match="not 7x7"):
        opened(written({**state, "model.1.weight": torch.ones(8, 3, 5, 5)}, path))
    strange = {k: v for k, v in state.items() if ".conv_block.1." not in k}
    with pytest.raises(CorruptSnapshotError, match="convolutions of its blocks"):
        opened(written(strange, path))
    lacking = {k: v for k, v in state.items() if k != "model.4.weight"}
    with pytest.raises(CorruptSnapshotError, match=r"model\.4\.weight"):
        _ = opened(written(lacking, path)).generator
    path.write_bytes((SAVED / "cut.pth").read_bytes()[:20_000])
    with pytest.raises(SnapshotError, match="damaged"):
        opened(path)
    for wrong in (
        {"kind": "vgg"}, {"ngf": 10**6}, {"ngf": "8"}, {"norm": "layer"}, {"reflect": 1},
        {"kind": "unet", "num_downs": 2}, {"unknown": True},
    ):  # fmt: skip
        with pytest.raises((TypeError, ValueError)):
            ADAPTER.make({"kind": "resnet", "ngf": 8, **wrong})


def test_inputs_that_are_no_pictures_are_arrays() -> None:
    model = ResnetGenerator(2, 3, 4, n_blocks=1)
    assert ADAPTER.pictures(model) is None
    with pytest.raises(AdapterError, match=r"2 channels.*inputs\.npz"):
        ADAPTER.sampler(model)


@NEEDED
@pytest.mark.extended
def test_commands(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out, sheet = SAVED / "cyclegan.pth", tmp_path / "out.pth", tmp_path / "sheet.png"
    fit = ["--preset", "fast", "--calibrate", "8", "--polish", "0", "--quiet"]
    assert main([str(path), "--out", str(out), *fit]) == 2
    assert "--calibration DIR|ZIP" in capsys.readouterr().err
    given = ["--calibration", str(pictures), "--crop", "32"]
    assert main([str(path), "--out", str(out), *fit, *given[:3], "30"]) == 2
    assert "multiples of 4" in capsys.readouterr().err
    assert not out.exists()
    assert main([str(path), "--out", str(out), *fit, *given]) == 0
    words = ["compare", str(path), str(out), "--seeds", "0-1", "--out", str(sheet)]
    assert main([*words, *given]) == 0
    assert sheet.exists()
    assert main(["inspect", str(out)]) == 0
    assert "resnet_6blocks" in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_against_the_original_code(name: str, pictures: Path, tmp_path: Path) -> None:
    """Opt-in: the unmodified code, by CYCLEGAN_ROOT."""
    root = os.environ.get("CYCLEGAN_ROOT")
    if not root:
        pytest.skip("CYCLEGAN_ROOT names no checkout")
    unet = name == "pix2pix"

    def build() -> nn.Module:
        return moved(image_to_image(root, ngf=4 if unet else 8, **NETWORKS[name]))

    torch.manual_seed(0)
    theirs, x = build(), random_picture(128 if unet else 32)
    path = written(theirs.state_dict(), tmp_path / "latest_net_G.pth")
    inputs = None if unet else picture_inputs(pictures, size=32, values="signed")
    file = opened(path, inputs=inputs)
    assert torch.allclose(run(file.generator, x), run(theirs, x), atol=1e-5)
    options = SVD if unet else {"preset": "fast", "width": 0.5, "calibrate": 8}
    result = convert_file(file, **options)
    save_file(file, result.models, tmp_path / "fast.pth")
    content = torch.load(tmp_path / "fast.pth", weights_only=True)
    made = restructure(build(), content["dsconvert"])
    made.load_state_dict(content["state_dict"])
    assert torch.allclose(run(made, x), run(result.main[1].model, x), atol=1e-5)
