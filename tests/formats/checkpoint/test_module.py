"""A user's own module and state dict; files that are hostile, damaged or strange."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file as save_safetensors
from torch import nn

from dsconvert import ModuleSource, convert_file, open_file, save_file
from dsconvert.cli import main
from dsconvert.errors import (
    CorruptSnapshotError,
    UnsafeSnapshotError,
    UnsupportedSnapshotError,
    UsageError,
)
from dsconvert.formats.checkpoint import load_checkpoint
from dsconvert.formats.restructure import describe_changes, restructure
from tests.models import Decoder, decoder, latents, output

SOURCE = ModuleSource(factory="tests.models:Decoder", shapes=((16,),))
Z = torch.randn(2, 16, generator=torch.Generator().manual_seed(4))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return decoder()


@pytest.fixture
def state_file(model: nn.Module, tmp_path: Path) -> Path:
    torch.save(model.state_dict(), tmp_path / "model.pth")
    return tmp_path / "model.pth"


LAYOUTS = {
    "bare": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "averaged first": lambda s: {
        "g_ema": s,
        "g": {k: v * 2 if v.is_floating_point() else v for k, v in s.items()},
    },
    "data parallel": lambda s: {"model": {f"module.{k}": v for k, v in s.items()}},
    "another name": lambda s: {"my_net": s, "loss": torch.zeros(3)},
}


@pytest.mark.slow
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_any_layout_goes_there_and_back(model: nn.Module, tmp_path: Path, layout: str) -> None:
    torch.save(LAYOUTS[layout](model.state_dict()), tmp_path / "in.pth")
    file = load_checkpoint(tmp_path / "in.pth", module=SOURCE)
    assert torch.equal(output(file.generator, Z), output(model, Z))
    result = convert_file(file, preset="balanced", init="svd", calibrate=8)
    save_file(file, result.models, tmp_path / "out.pth")
    back = open_file(tmp_path / "out.pth", module=SOURCE)
    assert torch.equal(output(back.generator, Z), output(result.main[1].model, Z))
    content = torch.load(tmp_path / "out.pth", weights_only=True)
    if layout == "state_dict":
        assert content["epoch"] == 3
    fresh = restructure(Decoder(), content["dsconvert"])
    there = content[result.main[0]]
    if layout == "data parallel":  # the wrapper's names are written back
        nn.ModuleDict({"module": fresh}).load_state_dict(there)
    else:
        fresh.load_state_dict(there)


def test_old_format_and_safetensors(model: nn.Module, tmp_path: Path) -> None:
    torch.save(model.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_safetensors(
        {k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "m.safetensors"
    )
    for name in ("old.pth", "m.safetensors"):
        file = load_checkpoint(tmp_path / name, module=SOURCE)
        assert torch.equal(output(file.generator, Z), output(model, Z))


@pytest.mark.slow
def test_the_command_line(
    state_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "fast.pth")
    own = ["--module", "tests.models:Decoder", "--input", "16"]
    made = main([str(state_file), "--out", out, "--init", "svd", "--calibrate", "8", *own])
    assert made == 0
    assert "fewer MACs" in capsys.readouterr().out
    assert main(["report", str(state_file), out, *own]) == 0
    assert main(["generate", out, "--seeds", "0", "--out", str(tmp_path / "a.png"), *own]) == 0
    capsys.readouterr()
    # A file never names what is imported: without the option it is refused.
    assert main(["report", out]) == 2
    assert "--module" in capsys.readouterr().err
    assert main(["report", str(state_file), "--input", "16"]) == 2
    assert "belong to --module" in capsys.readouterr().err
    assert main(["generate", out, "--out", str(tmp_path / "b.png"), *own[:2]]) == 2
    assert "--input" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        ("models", "not like package.path:factory"),
        ("no_such_package_at_all:f", "can't be imported"),
        ("tests.models:nothing", "has no nothing"),
        ("tests.models:SITES", "name a function or class"),
        ("tests.models:conv", "fails"),
        ("builtins:dict", "not a torch.nn.Module"),
        ("tests.models:Noise", "no state dict .* fits"),
    ],
)
def test_a_wrong_factory_is_explained(state_file: Path, factory: str, says: str) -> None:
    if factory == "tests.models:conv":
        factory = "tests.models:output"  # wants arguments
    with pytest.raises(UsageError, match=says):
        load_checkpoint(state_file, module=ModuleSource(factory=factory))


def test_a_wrong_key_is_explained(state_file: Path) -> None:
    with pytest.raises(UsageError, match="no state dict is there"):
        load_checkpoint(state_file, module=ModuleSource(factory="tests.models:Decoder", key="a.b"))


class _Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch PWNED",)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle in a zip"])
def test_nothing_in_a_checkpoint_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pth"
    content = {"g": torch.zeros(1), "x": _Payload()}
    if form == "pickle in a zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(content, protocol=2))
            archive.writestr("archive/version", "3\n")
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    for module in (None, SOURCE):
        with pytest.raises((UnsafeSnapshotError, CorruptSnapshotError)):
            open_file(path, module=module)
    assert main(["inspect", str(path)]) == 2
    assert not (tmp_path / "PWNED").exists()
    if form != "pickle in a zip":
        with pytest.raises(UnsafeSnapshotError, match="system"):
            open_file(path)


def test_damaged_files_are_refused_in_one_sentence(state_file: Path, tmp_path: Path) -> None:
    whole = state_file.read_bytes()
    for cut in (30, 100, len(whole) // 2, len(whole) - 10):
        (tmp_path / "cut.pth").write_bytes(whole[:cut])
        assert main(["inspect", str(tmp_path / "cut.pth")]) == 2
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(4 << 20))
    with pytest.raises(CorruptSnapshotError, match="compressed"):
        load_checkpoint(tmp_path / "bomb.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UnsupportedSnapshotError, match="not a dict"):
        load_checkpoint(tmp_path / "list.pth")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "unknown.pth")
    with pytest.raises(UnsupportedSnapshotError, match="no installed adapter knows"):
        load_checkpoint(tmp_path / "unknown.pth")


def _fan_out() -> Any:
    spec: dict[str, Any] = {"type": "ReLU"}
    for _ in range(20):
        spec = {"type": "Sequential", "children": [["0", spec], ["1", spec]]}
    return spec


HOSTILE_MARKS = {
    "numbers for names": {"version": 1, "adapter": "module", "config": {}, "recipes": {7: {}}},
    "shared children": {"replaced": {"head": _fan_out()}, "removed": [], "eps": {}},
    "no dict": 7,
    "another version": {"version": 2},
    "no recipes": {"version": 1, "adapter": "module", "config": {}},
    "strange module": {"replaced": {"head": {"type": "os.system"}}, "removed": [], "eps": {}},
    "no such place": {"replaced": {"a.b": {"type": "Identity"}}, "removed": [], "eps": {}},
    "huge": {
        "replaced": {
            "head": {
                "type": "Conv2d", "in_channels": 10**7, "out_channels": 10**7,
                "kernel_size": [9, 9], "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1],
                "groups": 1, "padding_mode": "zeros", "bias": False, "norm": None,
            }
        },
        "removed": [], "eps": {},
    },
    "not even that": {"replaced": 3},
    "method": {"replaced": {}, "removed": ["forward"], "eps": {}},
}  # fmt: skip


@pytest.mark.parametrize("name", list(HOSTILE_MARKS))
def test_hostile_recipes_are_refused(model: nn.Module, tmp_path: Path, name: str) -> None:
    mark = HOSTILE_MARKS[name]
    if isinstance(mark, dict) and "version" not in mark:
        mark = {"version": 1, "adapter": "module", "config": {}, "recipes": {"state_dict": mark}}
    torch.save({"state_dict": model.state_dict(), "dsconvert": mark}, tmp_path / "x.pth")
    with pytest.raises((CorruptSnapshotError, UnsupportedSnapshotError)):
        _ = load_checkpoint(tmp_path / "x.pth", module=SOURCE).generator


@pytest.mark.slow
def test_a_recipe_says_everything_that_a_conversion_changes(model: nn.Module) -> None:
    from dsconvert import convert

    for preset in ("exact", "paper", "balanced", "fast"):
        fast = convert(model, preset=preset, inputs=latents, init="svd", calibrate=8)
        rebuilt = restructure(Decoder(), describe_changes(model, fast))
        rebuilt.load_state_dict(fast.state_dict())
        assert torch.equal(output(rebuilt.eval(), Z), output(fast, Z))


@pytest.mark.slow
def test_a_recipe_refuses_what_it_has_no_words_for(model: nn.Module) -> None:
    other = decoder()
    other.head = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="head is a Linear"):
        describe_changes(model, other)
    other = decoder()
    other.more = nn.Conv2d(1, 1, 1)
    with pytest.raises(ValueError, match="more"):
        describe_changes(model, other)
