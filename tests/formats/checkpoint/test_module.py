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

from dsconvert import ModuleSource, convert_file, deploy, open_file, save_file
from dsconvert.cli import main
from dsconvert.data.classes import classes_of, with_class, with_classes_of
from dsconvert.errors import (
    CorruptSnapshotError,
    UnsafeSnapshotError,
    UnsupportedSnapshotError,
    UsageError,
)
from dsconvert.formats.checkpoint import load_checkpoint
from dsconvert.formats.checkpoint.module import ModuleCodebase
from dsconvert.formats.restructure import describe_changes, restructure
from tests.adapters.test_biggan import MadeUpLabels
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


CONDITIONAL = {"class": "Conditional", "onehot": "one_hot_conditional"}


@pytest.fixture(params=list(CONDITIONAL))
def conditional(
    request: pytest.FixtureRequest, tmp_path: Path
) -> tuple[Path, ModuleSource, list[str]]:
    """A conditional generator's file, how it is built, and the same as options."""
    torch.manual_seed(0)
    factory = f"tests.models:{CONDITIONAL[request.param]}"
    source = ModuleSource(factory=factory, shapes=((8,), f"{request.param}:5"))
    torch.save(ModuleCodebase(source).blank({}).state_dict(), tmp_path / "c.pth")
    words = ["--module", factory, "--input", "8", "--input", f"{request.param}:5"]
    return tmp_path / "c.pth", source, words


def test_classes_are_drawn(conditional: tuple[Path, ModuleSource, list[str]]) -> None:
    path, source, _ = conditional
    file = open_file(path, module=source)
    inputs = file.inputs()
    assert inputs is not None
    z, y = inputs(64, torch.Generator().manual_seed(0))
    again = inputs(64, torch.Generator().manual_seed(0))
    assert z.shape == (64, 8)
    assert torch.equal(z, again[0])
    assert torch.equal(y, again[1])
    assert classes_of(inputs) == 5
    whole = source.shapes[1] == "class:5"
    assert (y.dtype, y.shape) == ((torch.int64, (64,)) if whole else (torch.float32, (64, 5)))
    labels = y if whole else y.argmax(1)
    assert labels.unique().tolist() == [0, 1, 2, 3, 4]
    third = with_class(inputs, 3)(4, torch.Generator().manual_seed(0))[1]
    assert torch.equal(third if whole else third.argmax(1), torch.full((4,), 3))
    images: Any = MadeUpLabels()
    z, y = with_classes_of(inputs, images)(4, torch.Generator().manual_seed(0))
    assert z.unique(dim=0).shape == (4, 8)
    assert torch.equal(y if whole else y.argmax(1), torch.full((4,), 2))
    with torch.no_grad():
        two, three = (file.generator(*file.draws(label)(0)) for label in (2, 3))
    assert not torch.equal(two, three)
    with pytest.raises(UsageError, match=r"--class 5 is outside 0\.\.4"):
        file.draws(5)
    assert classes_of(ModuleCodebase(SOURCE).sampler(Decoder()) or latents) == 0


@pytest.mark.slow
def test_a_conditional_generator_on_the_command_line(
    conditional: tuple[Path, ModuleSource, list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, source, own = conditional
    out, picture = str(tmp_path / "fast.pth"), str(tmp_path / "a.png")
    fit = ["--calibrate", "8", "--polish-steps", "1", "--measure", "0"]
    assert main([str(path), "--out", out, *fit, *own]) == 0
    again = ["--overwrite", "--out", picture, *own]
    assert main(["generate", out, "--seeds", "0,1", "--class", "4", *again]) == 0
    assert main(["compare", str(path), out, "--seeds", "0", *again]) == 0
    assert main(["report", str(path), out, *own]) == 0
    assert main(["export", out, "--out", str(tmp_path / "fast.pt2"), *own]) == 0
    capsys.readouterr()
    assert main(["generate", out, "--seeds", "0", "--class", "5", *again]) == 2
    assert "--class 5 is outside 0..4" in capsys.readouterr().err
    # A folder of images goes on where it stopped, since it records the options.
    folder = ["--seeds", "0,1", "--out", f"{tmp_path}/f/", *own]
    assert main(["generate", out, *folder]) == 0
    capsys.readouterr()
    assert main(["generate", out, *folder]) == 0
    assert "2 were there" in " ".join(capsys.readouterr().out.split())
    file = open_file(out, module=source)
    inputs = file.inputs()
    args = inputs(2, torch.Generator().manual_seed(0)) if inputs else ()
    with torch.no_grad():
        want = file.generator(*args)
        assert torch.allclose(deploy(file.generator, inputs=inputs)(*args), want, atol=1e-5)


@pytest.mark.parametrize("text", ["class:", "class:0", "klass:5", "onehot:x", ":5"])
def test_a_wrong_argument_is_explained(
    state_file: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--module", "tests.models:Decoder", "--input", text]
    assert main(["report", str(state_file), *words]) == 2
    assert "is not like class:10 or onehot:10" in capsys.readouterr().err
    with pytest.raises(UsageError, match="is not like class:10 or onehot:10"):
        ModuleSource(factory="tests.models:Decoder", shapes=(text,))


def test_inspect_shows_what_the_inputs_tell(
    conditional: tuple[Path, ModuleSource, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    path, _, own = conditional
    assert main(["inspect", str(path), *own]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "images 8 x 8 px, 3 channels, 5 classes latents 8 numbers" in said
    assert main(["inspect", str(path), *own[:2]]) == 0
    assert "images" not in capsys.readouterr().out
    assert main(["inspect", str(path), *own[:4]]) == 0  # too few arguments
    assert "images" not in capsys.readouterr().out


def test_a_missing_argument_is_explained_to_the_command_line(
    conditional: tuple[Path, ModuleSource, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    path, _, own = conditional
    assert main([str(path), "--out", "x.pth", *own[:4], "--init", "svd", "--polish", "0"]) == 2
    said = capsys.readouterr().err
    assert "fails on its example inputs ([1, 8])" in said
    assert "in a command --input, or --calibration FILE.npz" in said


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
