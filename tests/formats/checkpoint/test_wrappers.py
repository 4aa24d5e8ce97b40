"""State dicts as wrappers leave them: read, converted, and written back in their own spelling."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dsconvert_adapters import fastgan_pytorch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from dsconvert import ModuleSource, convert_file, open_file, save_file
from dsconvert.cli import main
from dsconvert.formats.checkpoint.places import named, places
from dsconvert.formats.restructure import restructure
from tests.models import Decoder, decoder, output

SOURCE = ModuleSource(factory="tests.models:Decoder", shapes=((16,),))
Z = torch.randn(2, 16, generator=torch.Generator().manual_seed(4))


class Judge(nn.Module):
    """The other network of a file."""

    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 1, 3))


class Lit(nn.Module):
    """A LightningModule saves its state dict like this."""

    def __init__(self, name: str, generator: nn.Module) -> None:
        super().__init__()
        self.add_module(name, generator)
        self.discriminator = Judge()


class Ema(nn.Module):
    """What ema-pytorch's ``EMA`` holds."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.online_model = model
        self.ema_model = copy.deepcopy(model)
        self.register_buffer("initted", torch.tensor(True))
        self.register_buffer("step", torch.tensor(7))
        with torch.no_grad():
            for p in self.ema_model.parameters():
                p.mul_(1.01)


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model)  # type: ignore[return-value]


def partly_compiled(model: nn.Module) -> nn.Module:
    model.block1 = torch.compile(model.block1)
    return model


def uncompiled(model: nn.Module) -> nn.Module:
    """Compiled code rounds otherwise, and its names are not those of a recipe."""
    for name, child in list(model.named_children()):
        setattr(model, name, getattr(child, "_orig_mod", child))
    return model


WRAPPERS: dict[str, tuple[Callable[[nn.Module], nn.Module], str]] = {
    "DataParallel": (nn.DataParallel, "module"),
    "compiled": (compiled, "_orig_mod"),
    "compiled, DataParallel": (lambda m: nn.DataParallel(compiled(m)), "module._orig_mod"),
    "partly compiled": (partly_compiled, ""),
    "average": (AveragedModel, "module"),
    "average of compiled": (lambda m: AveragedModel(compiled(m)), "module._orig_mod"),
    "Lightning generator": (lambda m: Lit("generator", m), "generator"),
    "Lightning netG": (lambda m: Lit("netG", m), "netG"),
    "Lightning model": (lambda m: Lit("model", m), "model"),
    "Lightning, DataParallel": (lambda m: Lit("G", nn.DataParallel(m)), "G.module"),
    "ema-pytorch": (Ema, "ema_model"),
    "nested": (lambda m: Lit("model", Lit("generator", m)), "model.generator"),
}

QUICK = ("DataParallel", "Lightning generator")
# Others have the same prefix, or another of its names ("Lightning netG" with an entry of its own).
FURTHER = ("average of compiled", "Lightning netG", "Lightning model")


def _marks(kind: str) -> list[pytest.MarkDecorator]:
    further = [pytest.mark.extended] if kind in FURTHER else []
    return [*further, *([] if kind in QUICK else [pytest.mark.slow])]


@pytest.mark.parametrize(
    ("kind", "entry"),
    [
        *(pytest.param(kind, "state_dict", marks=_marks(kind)) for kind in WRAPPERS),
        ("DataParallel", ""),
        ("Lightning netG", "net"),
        *(
            pytest.param(kind, entry, marks=pytest.mark.extended)
            for kind in WRAPPERS
            for entry in ("", "net")
            if (kind, entry) not in (("DataParallel", ""), ("Lightning netG", "net"))
        ),
    ],
)
def test_what_a_wrapper_saved_it_loads_again(tmp_path: Path, kind: str, entry: str) -> None:
    """The wrapper around the restructured model loads the written file, strictly."""
    wrap, prefix = WRAPPERS[kind]
    wrapped = wrap(decoder())
    state = wrapped.state_dict()
    path, out = tmp_path / "in.pth", tmp_path / "out.pth"
    torch.save({entry: state, "epoch": 3} if entry else state, path)
    file = open_file(path, module=SOURCE)
    before = uncompiled(wrapped.get_submodule(prefix) if prefix else wrapped)
    assert torch.equal(output(file.generator, Z), output(before, Z))
    result = convert_file(file, preset="paper", init="svd", calibrate=0)
    save_file(file, result.models, out)

    content = torch.load(out, weights_only=True)
    fresh = wrap(Decoder())
    for m in {id(m): m for m in fresh.modules() if isinstance(m, Decoder)}.values():
        restructure(uncompiled(m), content["dsconvert"])
        if kind == "partly compiled":
            partly_compiled(m)
    fresh.load_state_dict(content[entry or "state_dict"])
    after = uncompiled(fresh.get_submodule(prefix) if prefix else fresh).eval()
    assert torch.equal(output(after, Z), output(result.main[1].model, Z))
    if entry:
        assert content["epoch"] == 3

    back = open_file(out, module=SOURCE)
    assert back.generators == file.generators or not entry
    for key in back.generators:
        assert torch.equal(output(back.module(key), Z), output(result.models[key], Z))
    # An average and its model are converted together: the file is loaded as one.
    assert len(file.generators) == (2 if kind == "ema-pytorch" else 1)


@pytest.mark.slow
def test_lightnings_other_entries_stay(tmp_path: Path) -> None:
    lit = Lit("generator", decoder())
    content = {
        "epoch": 1,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": lit.state_dict(),
        "hyper_parameters": {"lr": 0.1, "args": argparse.Namespace(batch=np.int64(8))},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best": np.float64(0.25)}},
    }
    torch.save(content, tmp_path / "lit.ckpt")
    file = open_file(tmp_path / "lit.ckpt", module=SOURCE)
    result = convert_file(file, preset="paper", init="svd", calibrate=0)
    save_file(file, result.models, tmp_path / "out.ckpt")
    written = torch.load(tmp_path / "out.ckpt", weights_only=False)
    for key in ("epoch", "pytorch-lightning_version", "hyper_parameters", "callbacks"):
        assert written[key] == content[key]
    assert type(written["hyper_parameters"]["args"]) is argparse.Namespace
    assert type(written["callbacks"]["ModelCheckpoint{'monitor': None}"]["best"]) is np.float64
    for name, value in lit.discriminator.state_dict().items():
        assert torch.equal(written["state_dict"][f"discriminator.{name}"], value)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["state_dict.generator", "state_dict.generator_ema"])
def test_a_key_may_name_a_prefix(tmp_path: Path, key: str) -> None:
    lit = Lit("generator", decoder())
    lit.generator_ema = decoder()
    with torch.no_grad():
        lit.generator_ema.head.weight.mul_(1.5)
    torch.save({"state_dict": lit.state_dict()}, tmp_path / "lit.ckpt")
    both = open_file(tmp_path / "lit.ckpt", module=SOURCE)
    assert both.generators == ("state_dict.generator_ema", "state_dict.generator")
    source = ModuleSource(factory="tests.models:Decoder", key=key, shapes=((16,),))
    file = open_file(tmp_path / "lit.ckpt", module=source)
    assert file.generators == (key,)
    wanted = lit.get_submodule(key.removeprefix("state_dict."))
    assert torch.equal(output(file.generator, Z), output(wanted, Z))


@pytest.mark.slow
def test_safetensors_of_a_wrapped_state_dict(tmp_path: Path) -> None:
    torch.save({"state_dict": Lit("netG", decoder()).state_dict()}, tmp_path / "in.ckpt")
    file = open_file(tmp_path / "in.ckpt", module=SOURCE)
    result = convert_file(file, preset="paper", init="svd", calibrate=0)
    save_file(file, result.models, tmp_path / "fast.safetensors")
    back = open_file(tmp_path / "fast.safetensors", module=SOURCE)
    assert torch.equal(output(back.generator, Z), output(result.main[1].model, Z))


def test_a_part_of_the_model_is_not_the_model() -> None:
    state = {f"a.{i}.weight": torch.zeros(1) for i in range(3)}
    assert not any(p.prefix == "a.1" for p in places({"x": state}))
    assert [p.prefix for p in named({"x": state}, "x.a")] == ["a"]
    assert named({"x": state}, "y") == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrapper",
    [
        "DataParallel",
        pytest.param("compiled", marks=pytest.mark.extended),
        "Lightning",
        "average",
    ],
)
def test_adapters_read_wrapped_files(fastgan_file: Path, tmp_path: Path, wrapper: str) -> None:
    """FastGAN-pytorch's generator in files that its own ``train.py`` would not have written."""
    content: dict[str, Any] = torch.load(fastgan_file, weights_only=True)
    state = content["g"]
    content = {
        "DataParallel": {**content, "g": {f"module.{k}": v for k, v in state.items()}},
        "compiled": {**content, "g": {f"_orig_mod.{k}": v for k, v in state.items()}},
        "average": {
            "g": state,
            "g_ema": {
                "n_averaged": torch.tensor(5),
                **{f"module.{k}": v for k, v in state.items()},
            },
        },
        "Lightning": {
            "state_dict": {
                **{f"generator.{k}": v for k, v in state.items()},
                "discriminator.x": torch.ones(2),
            },
            "epoch": 2,
        },
    }[wrapper]
    content["args"] = argparse.Namespace(path="x", iter=np.int64(3))
    torch.save(content, tmp_path / "in.pth")
    file = open_file(tmp_path / "in.pth")
    original = fastgan_pytorch.Generator(ngf=4, nz=16, im_size=256)
    original.load_state_dict(state)
    key = {"Lightning": "state_dict.generator"}.get(wrapper, "g")
    for a, b in zip(output(file.module(key), Z), output(original.eval(), Z), strict=True):
        assert torch.equal(a, b)
    result = convert_file(file, preset="paper", init="svd", calibrate=0)
    save_file(file, result.models, tmp_path / "out.pth")
    back = open_file(tmp_path / "out.pth")
    assert back.generators == file.generators
    for name in back.generators:
        assert torch.equal(output(back.module(name), Z)[0], output(result.models[name], Z)[0])
    written = torch.load(tmp_path / "out.pth", weights_only=False)
    assert written["args"] == content["args"]
    fresh = fastgan_pytorch.Generator(ngf=4, nz=16, im_size=256)
    restructure(fresh, written["dsconvert"])
    if wrapper == "DataParallel":
        nn.DataParallel(fresh).load_state_dict(written["g"])
    elif wrapper == "compiled":
        compiled(fresh).load_state_dict(written["g"])
    elif wrapper == "average":
        AveragedModel(fresh).load_state_dict(written["g_ema"])
    else:
        lit = nn.Module()
        lit.generator = fresh
        theirs = dict(written["state_dict"])
        assert torch.equal(theirs.pop("discriminator.x"), torch.ones(2))
        lit.load_state_dict(theirs)
        assert written["epoch"] == 2


@pytest.mark.slow
def test_the_commands_read_a_lightning_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": Lit("generator", decoder()).state_dict()}, tmp_path / "lit.ckpt")
    own = ["--module", "tests.models:Decoder", "--input", "16"]
    path, out = str(tmp_path / "lit.ckpt"), str(tmp_path / "fast.ckpt")
    assert (
        main([path, "--out", out, "--calibrate", "0", "--init", "svd", "--preset", "paper", *own])
        == 0
    )
    for file in (path, out):
        assert main(["inspect", file, *own[:2]]) == 0
        assert main(["report", file, *own]) == 0
    assert main(["compare", path, out, "--seeds", "0", "--out", str(tmp_path / "c.png"), *own]) == 0
    capsys.readouterr()
