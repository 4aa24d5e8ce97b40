"""Files of the codebases that spandrel opens: read by our reader, converted, written, read back."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from dsconvert_adapters.spandrel import ADAPTER
from torch import Tensor, nn

from dsconvert import convert, convert_file, open_file, picture_inputs, save_file
from dsconvert.adapter import adapters
from dsconvert.cli import main
from dsconvert.errors import (
    AdapterError,
    MissingExtraError,
    UnsafeSnapshotError,
    UnsupportedSnapshotError,
    UsageError,
)
from dsconvert.formats.restructure import restructure
from dsconvert.testing import check_adapter
from tests.adapters.spandrel_files import (
    PICTURES,
    as_realesrgan,
    compact,
    library,
    rrdb,
    run,
    written,
)
from tests.upscalers import picture_folder

SVD = {"preset": "fast", "init": "svd", "calibrate": 0}
NEEDED = pytest.mark.skipif(
    not any(a.name == "spandrel" for a in adapters()),
    reason="the entry point of the adapter is not installed: pip install -e . again",
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return picture_folder(tmp_path_factory.mktemp("pictures"), side=30)


LAYOUTS: dict[str, Any] = {
    "params_ema.pth": lambda s: {"params_ema": s},
    "both.pth": lambda s: {"params": {k: v * 0.5 for k, v in s.items()}, "params_ema": s},
    "training.ckpt": lambda s: {"params": s, "iter": 1000},
    "bare.pth": lambda s: s,
    "parallel.pth": lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
    "bare.safetensors": lambda s: s,
}
MODELS = {
    "compact": (compact, lambda s: s),
    "old names": (rrdb, lambda s: s),
    "Real-ESRGAN": (rrdb, as_realesrgan),
}
# Names are found in a state dict, wherever in the file it is; its prefix meets new names in one.
FIRST: dict[str, Any] = {
    "compact": LAYOUTS,
    "old names": ("params_ema.pth",),
    "Real-ESRGAN": ("both.pth", "parallel.pth", "bare.safetensors"),
}


@pytest.mark.parametrize(
    ("model", "layout"),
    [
        pytest.param(m, x, marks=[] if x in FIRST[m] else [pytest.mark.extended])
        for m in MODELS
        for x in LAYOUTS
    ],
)
def test_there_and_back(model: str, layout: str, tmp_path: Path) -> None:
    make, names = MODELS[model]
    original = make()
    content = LAYOUTS[layout](dict(names(original.state_dict())))
    path = written(content, tmp_path / layout)
    file = open_file(path, adapters=[ADAPTER])
    assert file.adapter is ADAPTER
    assert torch.equal(run(file.generator), run(original))
    result = convert_file(file, **SVD)
    out = tmp_path / f"out{path.suffix}"
    save_file(file, result.models, out)
    again = open_file(out, adapters=[ADAPTER])
    assert again.converted
    assert len(again.generators) == len(file.generators)
    for key, made in result.models.items():
        assert torch.equal(run(again.module(key)), run(made)), key
    # Everything else of the file stays as it was.
    if path.suffix != ".safetensors":
        kept = torch.load(out, weights_only=True)
        assert kept.get("iter") == content.get("iter")
        assert set(kept) >= {k for k, v in content.items() if not isinstance(v, Tensor)}
    # A second conversion starts from the converted file.
    inspected = again.adapter.describe(again.generator)
    assert inspected["scale"] == (2 if model == "compact" else 4)


def test_the_recipe_serves_the_unmodified_architecture(tmp_path: Path) -> None:
    """A project with spandrel and restructure.py, and without dsconvert, runs the file."""
    original = rrdb()
    path = written({"params_ema": as_realesrgan(original.state_dict())}, tmp_path / "in.pth")
    file = open_file(path, adapters=[ADAPTER])
    result = convert_file(file, **SVD)
    save_file(file, result.models, tmp_path / "out.pth")
    content = torch.load(tmp_path / "out.pth", weights_only=True)
    made = restructure(rrdb(), content["dsconvert"])
    made.load_state_dict(content["params_ema"])
    assert torch.equal(run(made), run(result.main[1].model))
    assert sum(p.numel() for p in made.parameters()) < sum(p.numel() for p in original.parameters())


def test_half_precision_stays(tmp_path: Path) -> None:
    state = {k: v.half() for k, v in as_realesrgan(rrdb().state_dict()).items()}
    file = open_file(written({"params": state}, tmp_path / "in.pth"), adapters=[ADAPTER])
    assert next(file.generator.parameters()).dtype == torch.float32
    save_file(file, convert_file(file, **SVD).models, tmp_path / "out.pth")
    kept = torch.load(tmp_path / "out.pth", weights_only=True)["params"]
    assert {v.dtype for v in kept.values()} == {torch.float16}


def test_expected_tensors(tmp_path: Path) -> None:
    """The file of 16 features gives these values in every version."""
    model = compact()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(0.1 * torch.sin(torch.arange(p.numel()) * 0.7 + i).reshape(p.shape))
    file = open_file(
        written({"params_ema": model.state_dict()}, tmp_path / "in.pth"), adapters=[ADAPTER]
    )
    grey = torch.full((1, 3, 4, 4), 0.5)
    made = run(file.generator, grey)
    assert made.shape == (1, 3, 8, 8)
    assert made[0, :, 3, 4].tolist() == pytest.approx(EXPECTED, abs=1e-4)


EXPECTED = [0.106874, -0.880983, -0.135580]


def test_the_contract() -> None:
    model = compact()
    state = {"params_ema": model.state_dict()}
    check_adapter(ADAPTER, model, checkpoint=state)


def test_other_architectures(tmp_path: Path) -> None:
    """Some that compute buffers, draw stochastic depth, or pad their input."""
    library()
    from spandrel.architectures.SPAN import SPAN
    from spandrel.architectures.SwinIR import SwinIR

    small = {"img_size": 16, "embed_dim": 12, "depths": [1], "num_heads": [2], "window_size": 8}
    for model in (
        SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=2),
        SwinIR(**small, upscale=2, upsampler="pixelshuffledirect"),
    ):
        path = written({"params": model.eval().state_dict()}, tmp_path / "in.pth")
        file = open_file(path, adapters=[ADAPTER])
        assert torch.allclose(run(file.generator), run(model), atol=1e-6)
        spec = ADAPTER.pictures(file.generator)
        assert (spec.channels, spec.values) == (3, "unit")


def test_refused_architectures_say_why(tmp_path: Path) -> None:
    library()
    from spandrel.architectures.DRUNet import DRUNet

    state = DRUNet(nc=[8, 8, 8, 8], nb=2).state_dict()
    path = written(state, tmp_path / "in.pth")
    with pytest.raises(AdapterError, match="noise level"):
        open_file(path, adapters=[ADAPTER])


def test_a_file_that_names_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    state = {"params_ema": compact().state_dict(), "extra": Evil()}
    torch.save(state, tmp_path / "in.pth")
    with pytest.raises(UnsafeSnapshotError):
        open_file(tmp_path / "in.pth", adapters=[ADAPTER])
    assert not (tmp_path / "ran").exists()


def test_a_config_from_a_file_is_checked() -> None:
    library()
    good = {"architecture": "Compact", "model": "Compact", "arguments": {}}
    assert isinstance(ADAPTER.build(good), nn.Module)
    for wrong in (
        {},
        {**good, "architecture": "os"},
        {**good, "model": "CompactArch"},
        {**good, "model": "__builtins__"},
        {**good, "arguments": {"num_feat": 10**9}},
        {**good, "arguments": {"num_feat": "many"}},
        {**good, "arguments": {"unknown": 1}},
        {**good, "arguments": {"act_type": "x"}},
        {**good, "arguments": [1]},
    ):
        with pytest.raises(AdapterError):
            ADAPTER.build(wrong)


def test_a_config_that_is_larger_than_its_file(tmp_path: Path) -> None:
    path = written({"params": compact().state_dict()}, tmp_path / "in.pth")
    file = open_file(path, adapters=[ADAPTER], inputs=lambda *_: (PICTURES,))
    save_file(file, {file.generators[0]: file.generator}, tmp_path / "out.pth")
    content = torch.load(tmp_path / "out.pth", weights_only=True)
    content["dsconvert"]["config"]["arguments"] |= {"num_feat": 1 << 15, "num_conv": 1}
    torch.save(content, tmp_path / "out.pth")
    with pytest.raises(AdapterError, match="far larger than the file's tensors"):
        _ = open_file(tmp_path / "out.pth", adapters=[ADAPTER]).generator


def test_without_spandrel_a_clear_error_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {f"body.{i}.weight": torch.zeros(4) for i in range(3)}
    path = written({"params_ema": state}, tmp_path / "in.pth")
    other = written({"weights": {"a": torch.zeros(2), "b": torch.ones(2)}}, tmp_path / "other.pth")
    from dsconvert_adapters.spandrel import library as ours

    monkeypatch.setattr(ours, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(MissingExtraError, match=r"spandrel.*pip install"):
        open_file(path, adapters=[ADAPTER])
    with pytest.raises(UnsupportedSnapshotError, match="no installed adapter knows"):
        open_file(other, adapters=[ADAPTER])


def test_pictures_are_needed(pictures: Path) -> None:
    model = compact()
    with pytest.raises(UsageError, match=r"reads pictures, and none are given: .*--init svd"):
        convert(model, adapter=ADAPTER)
    with pytest.raises(UsageError, match="reads pictures"):
        convert(model, adapter=ADAPTER, width="auto", init="svd")
    blind = convert(model, adapter=ADAPTER, init="svd", calibrate=0)
    inputs = picture_inputs(pictures, size=16)
    fitted = convert(model, adapter=ADAPTER, inputs=inputs, calibrate=16)
    (crops,) = inputs.held_out(8, torch.Generator().manual_seed(1))
    wanted = run(model, crops)
    errors = [float((run(m, crops) - wanted).square().mean()) for m in (fitted, blind)]
    assert errors[0] < 0.5 * errors[1]


@NEEDED
def test_commands(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = as_realesrgan(rrdb().state_dict())
    path, out = written({"params_ema": state}, tmp_path / "in.pth"), tmp_path / "out.pth"
    fit = ["--preset", "fast", "--calibrate", "8", "--polish", "0", "--quiet"]
    assert main([str(path), "--out", str(out), *fit]) == 2
    assert "--calibration DIR|ZIP" in capsys.readouterr().err
    assert not out.exists()
    given = ["--calibration", str(pictures), "--crop", "16"]
    assert main([str(path), "--out", str(out), *fit, *given]) == 0
    sheet = tmp_path / "sheet.png"
    words = ["compare", str(path), str(out), "--seeds", "0-1", "--out", str(sheet)]
    assert main(words) == 2
    assert "--calibration DIR|ZIP" in capsys.readouterr().err
    assert main([*words, *given]) == 0
    assert sheet.exists()
    assert main(["report", str(path), str(out), "--json"]) == 0
    capsys.readouterr()
    assert main(["inspect", str(out), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["adapter"] == "spandrel"
    assert facts["config"]["scale"] == 4
    exported = tmp_path / "out.safetensors"
    assert main(["export", str(out), "--format", "safetensors", "--out", str(exported)]) == 0
    assert torch.equal(run(open_file(exported).generator), run(open_file(out).generator))
    assert main([*words[:1], str(path), str(out), *words[3:], *given, "--overwrite", "--values",
                 "signed"]) == 2  # fmt: skip
    assert "reads unit ones" in capsys.readouterr().err


@NEEDED
@pytest.mark.parametrize(
    "words",
    [
        ["convert", "IN", "--out", "OUT"],
        ["convert", "IN", "--out", "OUT", "--target", "params=0.5x"],
        ["convert", "IN", "--plan-only"],
        ["generate", "IN", "--seeds", "0", "--out", "sheet.png"],
        ["eval", "IN", "--against", "IN"],
        ["distill", "IN", "IN", "--minutes", "1", "--out", "OUT"],
    ],
)
def test_each_command_says_that_pictures_are_missing(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    path = written({"params_ema": compact().state_dict()}, tmp_path / "in.pth")
    names = {"IN": str(path), "OUT": str(tmp_path / "out.pth")}
    assert main([names.get(w, w) for w in words]) == 2
    said = capsys.readouterr().err
    assert "reads pictures" in said
    assert "--calibration DIR|ZIP" in said
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.parametrize("make", [compact, rrdb])
def test_narrower_files(make: Any, pictures: Path, tmp_path: Path) -> None:
    """Fewer channels, also of a PReLU, which has one slope a channel."""
    original = make()
    path = written({"params_ema": original.state_dict()}, tmp_path / "in.pth")
    inputs = picture_inputs(pictures, size=16)
    file = open_file(path, adapters=[ADAPTER], inputs=inputs)
    result = convert_file(file, preset="fast", width=0.5, calibrate=8)
    made = result.main[1].model
    assert min(p.shape[0] for p in made.parameters() if p.dim() == 4 and p.shape[1] > 1) <= 8
    save_file(file, result.models, tmp_path / "out.pth")
    again = open_file(tmp_path / "out.pth", adapters=[ADAPTER])
    assert torch.equal(run(again.generator), run(made))
