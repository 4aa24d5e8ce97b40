"""BigGAN-PyTorch's and pytorch-pretrained-biggan's files, against values of the original code."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from dsconvert_adapters import biggan_pytorch, pretrained_biggan
from torch import nn

from dsconvert import convert, convert_file, open_file, save_file
from dsconvert.data.classes import classes_of, with_class, with_classes_of
from dsconvert.errors import AdapterError, CorruptSnapshotError, UnsupportedSnapshotError
from dsconvert.formats.restructure import restructure
from dsconvert.testing import check_adapter
from tests.adapters.originals import expected, filled, some, tensor

CASES = expected("biggan_pytorch")
DEEP = expected("pretrained_biggan")["BigGAN-deep"]
CLASSES = torch.tensor([1, 3])


def written(folder: Path, case: dict[str, Any], name: str = "G_ema.pth") -> Path:
    """A file as the original code writes it: the bare state dict."""
    path = folder / name
    torch.save(filled(case["shapes"]), path)
    if "settings" in case:
        (folder / "config.json").write_text(json.dumps(case["settings"]))
    return path


def images(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(tensor("z", (2, model.dim_z)), model.shared(CLASSES))


@pytest.mark.parametrize("name", CASES)
def test_a_file_gives_the_values_of_the_original_code(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    file = open_file(written(tmp_path, case))
    made = images(file.generator)
    assert list(made.shape) == case["output_shape"]
    assert some(made) == pytest.approx(case["output"], abs=2e-5)
    assert {k: list(v.shape) for k, v in file.generator.state_dict().items()} == case["shapes"]
    assert file.adapter is not None
    facts = file.adapter.describe(file.generator)
    assert (facts["resolution"], facts["c_dim"], facts["z_dim"]) == (32, 5, case["dim_z"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n == "BigGAN" else pytest.mark.extended) for n in CASES],
)
def test_a_converted_file_is_written_and_read(name: str, tmp_path: Path) -> None:
    file = open_file(written(tmp_path, CASES[name]))
    exact = images(convert(file.generator, preset="exact"))
    assert (exact - images(file.generator)).abs().max() < 1e-5
    result = convert_file(file, preset="balanced", width=0.5, calibrate=8)
    model: Any = result.main[1].model
    before = sum(p.numel() for p in file.generator.parameters())
    assert sum(p.numel() for p in model.parameters()) < before
    save_file(file, result.models, tmp_path / "fast.pth")
    again = open_file(tmp_path / "fast.pth")
    assert again.converted
    assert torch.equal(images(again.generator), images(model))
    # The embedding, which only callers of the model use, is still there.
    assert torch.equal(model.shared(CLASSES), file.generator.shared(CLASSES))  # type: ignore[operator]


@pytest.mark.slow
@pytest.mark.extended
@pytest.mark.parametrize("name", ["BigGAN", "mybn"])
def test_the_adapter_keeps_the_contract(name: str) -> None:
    model = biggan_pytorch.ADAPTER.make(
        biggan_pytorch.ADAPTER.read_config(filled(CASES[name]["shapes"]))
    )
    model.load_state_dict(state := filled(CASES[name]["shapes"]))
    check_adapter(biggan_pytorch.ADAPTER, model.eval(), checkpoint=dict(state))


class MadeUpLabels:
    """A data set whose images are all of class 2 of 5."""

    def __len__(self) -> int:
        return 4

    def label(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.eye(5)[[2] * len(rows)]


def test_a_class_is_drawn_on_request(tmp_path: Path) -> None:
    file = open_file(written(tmp_path, CASES["BigGAN"]))
    model: Any = file.generator
    _, y = file.draws(3)(0)
    assert torch.equal(y[0], model.shared.weight.detach()[3])
    z, any_class = file.draws(None)(0)
    assert z.shape == (1, 20)
    assert any_class.shape == (1, 12)
    with pytest.raises(Exception, match=r"--class 5 is outside 0\.\.4"):
        file.draws(5)
    # Not one-hot, and classes all the same for compare --class, eval and a hub's card.
    inputs, random = file.inputs(), torch.Generator()
    assert file.classes == classes_of(inputs) == 5
    assert torch.equal(with_class(inputs, 3)(2, random)[1][1], model.shared.weight.detach()[3])
    images: Any = MadeUpLabels()
    assert torch.equal(with_classes_of(inputs, images)(2, random)[1][1], model.shared.weight[2])


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    state = filled(CASES["BigGAN"]["shapes"])
    discriminator = {**state, "embed.weight": torch.zeros(5, 4)}
    torch.save(discriminator, tmp_path / "D.pth")
    with pytest.raises(UnsupportedSnapshotError, match=r"discriminator \(D\.pth\); name G_ema"):
        open_file(tmp_path / "D.pth")
    del state["blocks.1.0.conv2.bias"]
    torch.save(state, tmp_path / "lacks.pth")
    with pytest.raises(CorruptSnapshotError, match="biggan_pytorch's generator"):
        _ = open_file(tmp_path / "lacks.pth").generator
    whole = written(tmp_path, CASES["BigGAN"]).read_bytes()
    (tmp_path / "short.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptSnapshotError, match="damaged"):
        open_file(tmp_path / "short.pth")
    with pytest.raises(AdapterError, match="out of range"):
        biggan_pytorch.ADAPTER.make({**CONFIG, "dim_z": 1 << 40})
    with pytest.raises(AdapterError, match="out of range"):
        biggan_pytorch.ADAPTER.make({**CONFIG, "vectors": 17})


CONFIG = biggan_pytorch.ADAPTER.read_config(filled(CASES["BigGAN"]["shapes"]))


@pytest.mark.slow
def test_half_precision_stays_half(tmp_path: Path) -> None:
    half = {k: v.half() for k, v in filled(CASES["BigGAN"]["shapes"]).items()}
    torch.save(half, tmp_path / "half.pth")
    file = open_file(tmp_path / "half.pth")
    result = convert_file(file, preset="fast", init="svd", calibrate=0)
    save_file(file, result.models, tmp_path / "fast.pth")
    state = torch.load(tmp_path / "fast.pth", weights_only=True)["state_dict"]
    assert {v.dtype for v in state.values()} == {torch.float16}
    assert images(open_file(tmp_path / "fast.pth").generator).isfinite().all()


def truncated(model: nn.Module, truncation: float) -> torch.Tensor:
    with torch.no_grad():
        return model(tensor("z", (2, 8)), torch.eye(5)[[1, 3]], truncation)


def test_the_package_of_trained_weights(tmp_path: Path) -> None:
    file = open_file(written(tmp_path, DEEP, "pytorch_model.bin"))
    assert some(truncated(file.generator, 0.43)) == pytest.approx(DEEP["output"], abs=2e-5)
    assert some(truncated(file.generator, 1.0)) == pytest.approx(DEEP["whole"], abs=2e-5)
    assert {k: list(v.shape) for k, v in file.generator.state_dict().items()} == DEEP["shapes"]
    z, c = file.draws(2)(0)
    assert z.abs().max() <= 2
    assert c.tolist() == [[0, 0, 1, 0, 0]]
    settings = {**DEEP["settings"], "channel_width": 16}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(AdapterError, match=r"config\.json has other layers"):
        open_file(tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text("[1")
    with pytest.raises(CorruptSnapshotError, match="no JSON object"):
        open_file(tmp_path / "pytorch_model.bin")


def settled(config: Any) -> dict[str, torch.Tensor]:
    """The tensors of a generator whose spectral norms have converged, as training leaves them."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = pretrained_biggan.ADAPTER.make(config).train()
        for _ in range(10):
            truncated(model, 1.0)
    return model.state_dict()


@pytest.mark.slow
@pytest.mark.extended
def test_the_package_is_converted_narrower(tmp_path: Path) -> None:
    path = written(tmp_path, DEEP, "pytorch_model.bin")
    torch.save(settled(open_file(path).config), path)
    file = open_file(path)
    check_adapter(pretrained_biggan.ADAPTER, file.generator)
    result = convert_file(file, preset="balanced", width=0.5, calibrate=8)
    model = result.main[1].model
    save_file(file, result.models, tmp_path / "fast.bin")
    (tmp_path / "config.json").unlink()  # a converted file needs none
    again = open_file(tmp_path / "fast.bin")
    made = truncated(again.generator, 0.4)
    assert made.isfinite().all()
    assert torch.equal(made, truncated(model, 0.4))
    assert sum(p.numel() for p in model.parameters()) < 0.8 * sum(
        p.numel() for p in file.generator.parameters()
    )


@pytest.fixture
def original_code() -> Iterator[Any]:
    """A checkout of ajbrock/BigGAN-PyTorch, named by ``BIGGAN_ROOT``."""
    root = os.environ.get("BIGGAN_ROOT")
    if root is None:
        pytest.skip("BIGGAN_ROOT names no checkout of ajbrock/BigGAN-PyTorch")
    sys.path.insert(0, root)
    yield import_module("BigGAN")
    sys.path.remove(root)


@pytest.mark.slow
def test_the_original_code_loads_a_converted_file(original_code: Any, tmp_path: Path) -> None:
    file = open_file(written(tmp_path, CASES["BigGAN"]))
    result = convert_file(file, preset="balanced", width=0.5, calibrate=8)
    save_file(file, result.models, tmp_path / "fast.pth")
    checkpoint = torch.load(tmp_path / "fast.pth", weights_only=True)
    g = original_code.Generator(
        G_ch=4, resolution=32, n_classes=5, G_attn="16", dim_z=20, shared_dim=12, hier=True,
        no_optim=True, skip_init=True,
    )  # fmt: skip
    restructure(g, checkpoint["dsconvert"])
    g.load_state_dict(checkpoint["state_dict"])
    assert (images(g.eval()) - images(result.main[1].model)).abs().max() < 1e-5
