"""Files of rosinality/stylegan2-pytorch: read, converted, written, and loaded there again."""

from __future__ import annotations

import ast
import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from dsconvert_adapters.rosinality import ADAPTER, Generator, adopt, modulated
from torch import Tensor, nn

from dsconvert import (
    Plan,
    apply,
    convert_file,
    deploy,
    from_pretrained,
    load_generator,
    open_file,
    plan,
    save_file,
)
from dsconvert.adapter import adapters
from dsconvert.cli import main
from dsconvert.core.analysis import analyse
from dsconvert.core.merge import merged_module
from dsconvert.errors import CorruptSnapshotError, SnapshotError, UnsupportedSnapshotError
from dsconvert.formats.restructure import restructure
from dsconvert.hub.pretrained import WEIGHTS
from dsconvert.width import narrow
from tests.adapters.original_code import SAVED, WIDTHS, moved, rosinality

SVD: dict[str, Any] = {"preset": "fast", "init": "svd", "calibrate": 0}
FILE = SAVED / "rosinality.pt"
NEEDED = pytest.mark.skipif(
    not any(a.name == "rosinality" for a in adapters()),
    reason="the entry point of the adapter is not installed: pip install -e . again",
)


def opened(path: Path = FILE, **options: Any) -> Any:
    return open_file(path, adapters=[ADAPTER], **options)


def run(model: nn.Module, z: Tensor, **options: Any) -> Tensor:
    with torch.no_grad():
        return model(z, randomize_noise=False, **options)


def written(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def content() -> dict[str, Any]:
    return torch.load(FILE, weights_only=True)


def test_the_original_code_s_images() -> None:
    """The file and the expected images were made by the original code."""
    expected = torch.load(SAVED / "rosinality.expected.pt", weights_only=True)
    z, file = expected.pop("z"), opened()
    assert file.generators == ("g_ema", "g")
    assert file.config == {"channels": [8, 6, 4], "style_dim": 8, "n_mlp": 2, "taps": 4}
    mean = content()["latent_avg"]
    made = {
        "stored noise": run(file.generator, z),
        "truncated": run(file.generator, z, truncation=0.5, truncation_latent=mean),
        "mixed": run(file.generator, [z, z.flip(0)], inject_index=3),  # type: ignore[arg-type]
    }
    for name, images in expected.items():
        assert images.std() > 0.1
        assert (made[name] - images).abs().max() < 1e-4, name
    assert (run(file.module("g"), z) - made["stored noise"]).abs().max() > 1e-2


def test_the_layout_is_the_original_s() -> None:
    state = content()["g_ema"]
    made = opened().generator.state_dict()
    assert {k: v.shape for k, v in made.items()} == {k: v.shape for k, v in state.items()}
    assert all(torch.equal(v, state[k]) for k, v in made.items())


@pytest.mark.slow
def test_there_and_back(tmp_path: Path) -> None:
    more = {"args": {"size": 16}, "d": {"x": torch.ones(2)}, "g_optim": {}, "d_optim": {}}
    path = written({**content(), **more}, tmp_path / "in.pt")
    file = opened(path)
    result = convert_file(file, **SVD)
    save_file(file, result.models, tmp_path / "out.pt")
    again = opened(tmp_path / "out.pt")
    z = torch.randn(2, 8)
    for key, model in result.models.items():
        assert torch.equal(run(again.module(key), z), run(model, z)), key
    kept = torch.load(tmp_path / "out.pt", weights_only=True)
    assert set(kept) == {"g_ema", "g", "d", "args", "latent_avg", "dsconvert"}
    assert ADAPTER.describe(again.generator)["resolution"] == 16
    # Layers that stay dense have the original's names.
    assert kept["g_ema"]["to_rgb1.conv.weight"].shape == (1, 3, 8, 1, 1)
    assert "convs.0.conv.demod.conv.pointwise.weight" in kept["g_ema"]


@pytest.mark.slow
def test_full_rank_is_a_file_of_the_original(tmp_path: Path) -> None:
    file = opened()
    result = convert_file(file, preset="exact", init="svd", calibrate=0)
    save_file(file, result.models, tmp_path / "out.pt")
    kept = torch.load(tmp_path / "out.pt", weights_only=True)["g_ema"]
    assert {k: v.shape for k, v in kept.items()} == {
        k: v.shape for k, v in content()["g_ema"].items()
    }
    z = torch.randn(2, 8)
    assert (run(result.main[1].model, z) - run(file.generator, z)).abs().max() < 1e-4


@pytest.mark.slow
@NEEDED
def test_a_converted_file_is_deployed_and_shared(tmp_path: Path) -> None:
    """Its graph also reads the kernels; one of few channels is run by another operator."""
    file, z = opened(), torch.randn(2, 8)
    model = convert_file(file, **SVD).main[1].model
    fast = deploy(model, noise="zero")
    for module in model.modules():
        if isinstance(module, ADAPTER.noise_types()):
            module.get_parameter("weight").data.zero_()
    with torch.no_grad():
        assert torch.allclose(fast(z), run(model, z), atol=1e-5)
    pytest.importorskip("safetensors")
    file.save_safetensors(model, tmp_path / WEIGHTS, noise="random", overwrite=False)
    for loaded in (from_pretrained(tmp_path), load_generator(tmp_path / WEIGHTS)):
        assert torch.equal(run(loaded, z), run(model, z))
        assert not loaded.training


class ModulatedConv2d(nn.Module):
    """Has the attributes of the original's layer, which ``adopt`` replaces."""

    downsample = False

    def __init__(self, ours: Any) -> None:
        super().__init__()
        self.demodulate, self.upsample = "demod" in ours._modules, "blur" in ours._modules
        self.modulation = ours.modulation
        self.weight = nn.Parameter(ours.state_dict()["weight"])
        if self.upsample:
            self.blur = copy.deepcopy(ours.blur)


def like_the_original(g: nn.Module) -> nn.Module:
    made = copy.deepcopy(g)
    for name, module in list(made.named_modules()):
        if isinstance(module, modulated.ModulatedConv2d):
            parent = made.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], ModulatedConv2d(module))
    return made


@pytest.mark.slow
def test_a_user_without_dsconvert_can_load_it(tmp_path: Path) -> None:
    """``modulated.py`` and ``restructure.py`` alone, with the original's ``Generator``."""
    file, z = opened(), torch.randn(2, 8)
    theirs = like_the_original(file.generator)
    assert not any(isinstance(m, modulated.ModulatedConv2d) for m in theirs.modules())
    assert torch.equal(run(adopt(copy.deepcopy(theirs)), z), run(file.generator, z))
    result = convert_file(file, preset="fast", width=0.5, calibrate=8)
    save_file(file, result.models, tmp_path / "out.pt")
    entry = torch.load(tmp_path / "out.pt", weights_only=True)
    made = restructure(adopt(theirs), entry["dsconvert"]["recipes"]["g_ema"])
    made.load_state_dict(entry["g_ema"])
    assert torch.equal(run(made, z), run(result.main[1].model, z))
    theirs.conv1.conv = ModulatedConv2d(file.generator.conv1.conv)  # type: ignore[assignment]
    theirs.conv1.conv.downsample = True  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"conv1\.conv downsamples"):
        adopt(theirs)


def test_modulated_needs_nothing_but_torch() -> None:
    tree = ast.parse(Path(str(modulated.__file__)).read_text())
    imported = {
        (n.module or "") if isinstance(n, ast.ImportFrom) else n.names[0].name
        for n in ast.walk(tree)
        if isinstance(n, ast.Import | ast.ImportFrom)
    }
    assert {name.split(".")[0] for name in imported} == {"__future__", "typing", "torch"}


class _Plain(Tensor):
    """A tensor that is no plain one: the layer then takes the form that torch.fx traces."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "rank"),
    [
        ("pw-dw", 1),
        *(pytest.param(*c, marks=pytest.mark.extended) for c in (("dw-pw", 1), ("pw-dw", 3))),
    ],
)
def test_scaled_factors_equal_scaled_maps(rule: str, rank: int) -> None:
    """Styles and demodulation in the factors, depthwise and filter merged: the same numbers."""
    g = opened().generator
    data: Any = json.loads(plan(g, preset="fast", adapter=ADAPTER).to_json())
    for row in data["decisions"]:
        if ".demod." in row["site"]:
            row.update(action="rewrite", rule=rule, rank=rank)
    edited = Plan.from_json(json.dumps(data))
    fast = apply(g, edited, adapter=ADAPTER, init="svd", calibrate=0).model
    for site in (d["site"] for d in data["decisions"] if ".demod." in d["site"]):
        layer: Any = fast.get_submodule(site.removesuffix(".demod.conv"))
        assert isinstance(layer.demod.conv, nn.Sequential)
        for n in (1, 3):
            x, w = torch.randn(n, layer.modulation.weight.shape[0], 4, 4), torch.randn(n, 8)
            with torch.no_grad():
                plain = layer(x.as_subclass(_Plain), w).as_subclass(Tensor)
                assert (layer(x, w) - plain).abs().max() < 1e-5
        # The demodulation, by the book, on the dense kernel that the pair stands for.
        dense: Any = merged_module(layer.demod.conv)
        kernel = dense.weight if isinstance(dense, nn.Conv2d) else dense.weight.transpose(0, 1)
        styles = torch.randn(2, kernel.shape[1])
        energy = (kernel[None] * styles[:, None, :, None, None]).square().sum((2, 3, 4))
        with torch.no_grad():
            assert torch.allclose(layer.demod(styles), (energy + 1e-8).rsqrt(), rtol=1e-4)


@pytest.mark.extended
def test_styles_follow_the_maps_that_they_scale() -> None:
    g: Any = moved(Generator([16, 16, 16], 16, 2))
    groups = analyse(g, adapter=ADAPTER).groups
    free = [x.name for x in groups.free()]
    assert free == [f"{n}.conv.demod.conv" for n in ("conv1", *(f"convs.{i}" for i in range(4)))]
    slim: Any = narrow(g, groups, {name: range(8) for name in free})
    assert slim.input.input.shape == (1, 16, 4, 4)
    assert slim.convs[0].conv.modulation.weight.shape == (8, 16)
    assert slim.convs[1].activate.bias.shape == (8,)
    assert slim.to_rgbs[1].conv.scale == g.to_rgbs[1].conv.scale
    assert run(slim, torch.randn(2, 16)).shape == (2, 3, 16, 16)


@pytest.mark.extended
def test_half_precision_and_wrappers(tmp_path: Path) -> None:
    """Half precision stays; a decoder inside another model (pSp) is found by its names."""
    halves = {f"decoder.{k}": v.half() for k, v in content()["g_ema"].items()}
    path = written({"state_dict": {**halves, "encoder.x": torch.ones(3)}}, tmp_path / "in.pt")
    file = opened(path)
    assert next(file.generator.parameters()).dtype == torch.float32
    result = convert_file(file, **SVD)
    save_file(file, result.models, tmp_path / "out.pt")
    kept = torch.load(tmp_path / "out.pt", weights_only=True)["state_dict"]
    assert torch.equal(kept.pop("encoder.x"), torch.ones(3))
    assert {v.dtype for v in kept.values()} == {torch.float16}
    z = torch.randn(2, 8)
    error = (run(opened(tmp_path / "out.pt").generator, z) - run(result.main[1].model, z)).abs()
    assert error.max() < 0.05


def test_other_files_are_refused(tmp_path: Path) -> None:
    state = content()["g_ema"]
    swagan = {**state, "iwt.ll": torch.ones(2, 2)}
    with pytest.raises(UnsupportedSnapshotError, match="SWAGAN"):
        opened(written({"g_ema": swagan}, tmp_path / "swagan.pt"))
    grey = {**state, "to_rgb1.bias": torch.ones(1, 1, 1, 1)}
    with pytest.raises(CorruptSnapshotError, match="1 channels, not 3"):
        opened(written({"g_ema": grey}, tmp_path / "grey.pt"))
    lacking = {k: v for k, v in state.items() if k != "convs.1.conv.weight"}
    with pytest.raises(CorruptSnapshotError, match=r"convs\.1\.conv"):
        _ = opened(written({"g_ema": lacking}, tmp_path / "lacking.pt")).generator
    (tmp_path / "cut.pt").write_bytes(FILE.read_bytes()[:20_000])
    with pytest.raises(SnapshotError, match="damaged"):
        opened(tmp_path / "cut.pt")
    for wrong in ({"channels": [8] * 11}, {"channels": [10**9]}, {"n_mlp": "2"}):
        good = {"channels": [8], "style_dim": 8, "n_mlp": 2, "taps": 4}
        with pytest.raises(ValueError, match=r"is no number|resolutions"):
            ADAPTER.make({**good, **wrong})


@NEEDED
@pytest.mark.extended
def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, sheet = tmp_path / "out.pt", tmp_path / "sheet.png"
    fit = ["--rank", "1", "--width", "1", "--calibrate", "8", "--polish", "0", "--quiet"]
    assert main([str(FILE), "--out", str(out), *fit]) == 0
    assert main(["compare", str(FILE), str(out), "--seeds", "0-1", "--out", str(sheet)]) == 0
    assert main(["report", str(FILE), str(out), "--json"]) == 0
    truncated = ["--trunc", "0.5", "--out", str(tmp_path / "image.png")]
    assert main(["generate", str(out), "--seeds", "0", *truncated]) == 0
    capsys.readouterr()
    assert sheet.exists()


def test_against_the_original_code(tmp_path: Path) -> None:
    """Opt-in: the unmodified code, by ROSINALITY_ROOT, at its own width and at a small one."""
    root = os.environ.get("ROSINALITY_ROOT")
    if not root:
        pytest.skip("ROSINALITY_ROOT names no checkout")
    for code, arguments in (
        (rosinality(root), (8, 32, 2)),
        (rosinality(root, WIDTHS), (16, 8, 2)),
    ):
        torch.manual_seed(1)
        theirs = moved(code.Generator(*arguments))
        path = written({"g_ema": theirs.state_dict()}, tmp_path / "in.pt")
        file, z = opened(path), torch.randn(2, arguments[1])
        wanted = run(theirs, [z])[0]  # type: ignore[arg-type]
        assert wanted.std() > 0.1
        assert (run(file.generator, z) - wanted).abs().max() < 1e-4
        result = convert_file(file, preset="fast", width=0.5, calibrate=8)
        save_file(file, result.models, tmp_path / "out.pt", overwrite=True)
        entry = torch.load(tmp_path / "out.pt", weights_only=True)
        made = adopt(moved(code.Generator(*arguments)))
        restructure(made, entry["dsconvert"]["recipes"]["g_ema"])
        made.load_state_dict(entry["g_ema"])
        ours = run(result.main[1].model, z)
        assert (run(made, [z])[0] - ours).abs().max() < 1e-4  # type: ignore[arg-type]
