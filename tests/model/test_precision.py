"""Weights of other types than float32: float32 in memory, their own types in the file."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from dsconvert_adapters.projected_gan import Generator
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import spectral_norm

import dsconvert
from dsconvert import ModuleSource, convert_file, export_model, open_file, save_file
from dsconvert.cli import main
from dsconvert.errors import OutputError
from dsconvert.formats.official import load_snapshot, new_snapshot, save_snapshot
from dsconvert.model.precision import as_stored, narrowed, stored_copy, widen
from tests.made_models import moved_generator
from tests.models import Decoder, decoder, latents, output

SOURCE = ModuleSource(factory="tests.models:Decoder", shapes=((16,),))
Z = torch.randn(2, 16, generator=torch.Generator().manual_seed(4))
TYPES = [torch.float16, torch.bfloat16, torch.float64]


def mixed(model: nn.Module, kind: torch.dtype) -> nn.Module:
    """Weights in ``kind``, normalisations in float32, as training in mixed precision keeps them."""
    model.to(kind)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.float()
    return model


def types_of(state: dict[str, torch.Tensor]) -> dict[str, torch.dtype]:
    return {k: v.dtype for k, v in state.items() if v.is_floating_point()}


# The parts -----------------------------------------------------------------------------------


def test_widening_keeps_what_is_shared() -> None:
    model = nn.Module()
    model.a = nn.Conv2d(2, 2, 1).half()
    model.b = nn.Conv2d(2, 2, 1).half()
    model.b.weight = model.a.weight
    model.twice = model.a
    model.register_buffer("x", torch.ones(2, dtype=torch.bfloat16))
    model.register_buffer("y", model.x)
    model.register_buffer("n", torch.tensor(3))
    weight = model.a.weight
    widen(model)
    assert model.b.weight is model.a.weight is weight
    assert model.x is model.y
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.x.dtype == torch.float32
    assert model.n.dtype == torch.int64
    same = model.a.weight
    assert widen(model).a.weight is same


def test_the_weight_that_a_norm_leaves_behind_follows() -> None:
    conv = spectral_norm(nn.Conv2d(2, 2, 1)).half()
    conv.__dict__["weight"] = conv.weight_orig.data
    widen(conv)
    assert conv.weight.dtype == torch.float32
    assert torch.equal(conv.weight, conv.weight_orig)
    stored = stored_copy(conv, {"weight_orig": torch.zeros(1).half()}, "x")
    assert stored.weight_orig.dtype == stored.weight.dtype == torch.float16


def test_a_new_tensor_has_the_type_of_what_it_replaces() -> None:
    own = {
        "a.conv.weight": torch.ones(3, 2).half(),
        "a.conv.bias": torch.ones(3),
        "a.norm.weight": torch.ones(3).bfloat16(),
        "head.weight": torch.ones(9).double(),
        "n": torch.tensor(1),
    }
    state = {
        "a.conv.depthwise.weight": torch.ones(3),
        "a.conv.pointwise.weight": torch.ones(3),
        "a.conv.pointwise.bias": torch.ones(3),
        "a.norm.weight": torch.ones(3),
        "head.0.weight": torch.ones(3),
        "quite.other": torch.ones(3),
        "n": torch.tensor(2),
    }
    assert types_of(as_stored(state, own, "x")) == {
        "a.conv.depthwise.weight": torch.float16,
        "a.conv.pointwise.weight": torch.float16,
        "a.conv.pointwise.bias": torch.float32,
        "a.norm.weight": torch.bfloat16,
        "head.0.weight": torch.float64,
        "quite.other": torch.float64,  # the largest of all
    }


def test_what_has_not_changed_is_the_files_own() -> None:
    own = {"a": torch.rand(3, dtype=torch.float64), "b": torch.rand(3, dtype=torch.float64)}
    made = as_stored({"a": own["a"].float(), "b": own["b"].float() + 1}, own, "x")
    assert torch.equal(made["a"], own["a"])
    assert made["b"].dtype == torch.float64


def test_an_overflow_names_the_tensor() -> None:
    with pytest.raises(OutputError, match=r"a\.b of file\.pth reaches 70000, and float16.*65504"):
        narrowed(torch.tensor([1.0, -7e4]), torch.float16, "a.b", "file.pth")
    kept = narrowed(torch.tensor([float("inf"), 1.0]), torch.float16, "a.b", "file.pth")
    assert kept[0] == float("inf")  # the file's own
    narrowed(torch.tensor([7e4]), torch.bfloat16, "a.b", "file.pth")


# Files ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(torch.float16, marks=pytest.mark.extended),  # it is in the mixed one
        torch.bfloat16,
        torch.float64,
        "mixed",
    ],
)
def test_a_state_dict_there_and_back(tmp_path: Path, kind: torch.dtype | str) -> None:
    model = mixed(decoder(), torch.float16) if kind == "mixed" else decoder().to(kind)
    path, out = tmp_path / "in.pth", tmp_path / "out.pth"
    torch.save({"state_dict": model.state_dict()}, path)
    file = open_file(path, module=SOURCE)
    reference = Decoder()
    reference.load_state_dict(model.state_dict())
    assert torch.equal(output(file.generator, Z), output(reference.eval(), Z))
    result = convert_file(file, preset="paper", calibrate=8)
    assert {p.dtype for p in result.main[1].model.parameters()} == {torch.float32}
    save_file(file, result.models, out)
    before = model.state_dict()
    after = torch.load(out, weights_only=True)["state_dict"]
    assert set(after) != set(before)
    wide = {k for k, v in after.items() if v.dtype == torch.float32}
    if kind == "mixed":
        assert wide == {k for k in after if k.startswith(("block1.3.", "block1.6."))} - {
            k for k in after if k.endswith("num_batches_tracked")
        }
    else:
        assert not wide
    for name in ("start.weight", "mix.weight", "block1.2.weight"):
        if name in after:
            assert after[name].dtype == before[name].dtype
    back = open_file(out, module=SOURCE)
    made, wanted = output(back.generator, Z), output(result.main[1].model, Z)
    assert torch.allclose(made, wanted, atol=2e-2 * float(wanted.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    ["mixed"]  # float16 is in the mixed one, and float64 in that of a state dict
    + [pytest.param(k, marks=pytest.mark.extended) for k in TYPES],
)
def test_a_snapshot_there_and_back(tmp_path: Path, kind: torch.dtype | str) -> None:
    model = moved_generator()
    model = mixed(model, torch.float16) if kind == "mixed" else model.to(kind)
    path, out = tmp_path / "in.pkl", tmp_path / "out.pkl"
    save_snapshot(new_snapshot(model), model, path)
    file = load_snapshot(path)
    assert {p.dtype for p in file.generator.parameters()} == {torch.float32}
    result = convert_file(file, preset="paper", calibrate=8)
    save_file(file, result.models, out)
    back = load_snapshot(out)
    for key in ("G", "G_ema"):
        before, after = file.own(key), back.own(key)
        assert set(types_of(after).values()) == set(types_of(before).values())
        shared = before.keys() & after.keys()
        assert all(before[k].dtype == after[k].dtype for k in shared)
    assert {p.dtype for p in back.generator.parameters()} == {torch.float32}


@pytest.mark.slow
def test_a_safetensors_export_there_and_back(tmp_path: Path) -> None:
    model = mixed(moved_generator(), torch.float16)
    path, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    export_model(model, path)
    assert {v.dtype for v in load_file(path).values()} >= {torch.float16, torch.float32}
    file = open_file(path)
    assert {p.dtype for p in file.generator.parameters()} == {torch.float32}
    result = convert_file(file, preset="paper", calibrate=8)
    save_file(file, result.models, out)
    before, after = load_file(path), load_file(out)
    shared = before.keys() & after.keys()
    assert all(before[k].dtype == after[k].dtype for k in shared)
    new = {k for k in after if k not in before and k.endswith("pointwise.weight")}
    assert new
    assert {after[k].dtype for k in new} == {torch.float16}


@pytest.mark.slow
def test_a_result_that_overflows_is_not_written(tmp_path: Path) -> None:
    torch.save({"state_dict": decoder().half().state_dict()}, tmp_path / "in.pth")
    file = open_file(tmp_path / "in.pth", module=SOURCE)
    model = copy.deepcopy(file.generator)
    with torch.no_grad():
        model.block1[3].running_var.fill_(1e6)
    with pytest.raises(OutputError, match=r"block1\.3\.running_var of state_dict in .*in\.pth"):
        save_file(file, {"state_dict": model}, tmp_path / "out.pth")
    snapshot = moved_generator().half()
    save_snapshot(new_snapshot(snapshot), snapshot, tmp_path / "in.pkl")
    snap = load_snapshot(tmp_path / "in.pkl")
    broken: Generator = copy.deepcopy(snap.generator)  # type: ignore[assignment]
    with torch.no_grad():
        broken.get_parameter("synthesis.to_big.weight_orig").fill_(1e6)
    with pytest.raises(OutputError, match=r"synthesis\.to_big\.weight_orig of G_ema in .*in\.pkl"):
        save_snapshot(snap, broken, tmp_path / "out.pkl")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.pkl", "in.pth"]


@pytest.mark.slow
def test_a_live_model_in_half_precision() -> None:
    """The Python interface keeps a model's own types, and computes the fit in float32."""
    model = decoder()
    wide = dsconvert.convert(model, preset="paper", inputs=latents, calibrate=8)
    narrow = dsconvert.convert(model.half(), preset="paper", inputs=latents, calibrate=8)
    assert {p.dtype for p in narrow.parameters()} == {torch.float16}
    a, b = output(wide, Z), output(narrow.float(), Z)
    assert torch.allclose(a, b, atol=3e-2 * float(a.abs().max()))


# The commands --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["float16", "bfloat16", "mixed", "float64"])
@pytest.mark.extended
def test_every_command_takes_such_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    model = decoder()
    model = mixed(model, torch.float16) if kind == "mixed" else model.to(getattr(torch, kind))
    own = ["--module", "tests.models:Decoder", "--input", "16"]
    path, fast = str(tmp_path / "in.pth"), str(tmp_path / "fast.pth")
    torch.save({"state_dict": model.state_dict()}, path)

    unpolished = ["--polish", "0"]

    def at(name: str) -> str:
        return str(tmp_path / name)

    calls = [
        [path, "--out", fast, "--calibrate", "8", "--preset", "paper", *unpolished],
        [path, "--out", at("t.pth"), "--target", "macs=0.8x", "--calibrate", "8", *unpolished],
        ["generate", fast, "--seeds", "0", "--out", at("g.png")],
        ["compare", path, fast, "--seeds", "0", "--out", at("c.png")],
        ["report", path, fast],
        ["inspect", fast],
        ["distill", path, fast, "--steps", "1", "--batch", "2", "--features", "0",
         "--out", at("d.pth")],
    ]  # fmt: skip
    for call in calls:
        given = own[:2] if call[0] == "inspect" else own
        assert main([*call, *given]) == 0, call
        said = capsys.readouterr()
        assert "Traceback" not in said.err
    wanted = set(types_of(model.state_dict()).values())
    for name in ("fast.pth", "t.pth", "d.pth"):
        state = torch.load(at(name), weights_only=True)["state_dict"]
        assert set(types_of(state).values()) == wanted, name
