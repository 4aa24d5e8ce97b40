"""Generators with fewer channels through each kind of file, there and back."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from dsconvert_adapters import fastgan_pytorch, lightweight_gan
from torch import Tensor, nn

from dsconvert import ModuleSource, convert_file, open_file, save_file
from dsconvert.cli import main
from dsconvert.formats.base import GeneratorFile
from dsconvert.formats.convert_file import FileConversion
from dsconvert.formats.official import new_snapshot, save_snapshot
from dsconvert.formats.restructure import describe_changes, restructure
from tests.adapters.stylegan2_files import made, official_file
from tests.made_models import drifted, fastgan_content, moved, moved_generator
from tests.models import output

OWN = ModuleSource(factory="tests.formats.test_narrower_files:OwnGenerator", shapes=((12,),))
LIGHTWEIGHT: dict[str, Any] = {
    "latent_dim": 16, "channels": [16, 32, 32, 16, 16, 8], "gates": {1: "frequency"},
}  # fmt: skip


class Gain(nn.Module):
    """A normalisation of somebody's own: parameters, a buffer and a number for each channel."""

    shift: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.gain = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.register_buffer("shift", torch.linspace(0, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, self.channels, *x.shape[2:]) * self.gain + self.shift[:, None, None]


class OwnGenerator(nn.Module):
    """Layers of every kind that loses channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 32 * 16)
        self.start = nn.Parameter(torch.linspace(-1, 1, 32)[:, None, None])
        self.body = nn.Sequential(
            nn.Conv2d(32, 24, 3, padding=1), nn.GroupNorm(24, 24), nn.PReLU(24),
            nn.Conv2d(24, 24, 3, padding=1), nn.InstanceNorm2d(24, affine=True), nn.Tanh(),
            nn.Conv2d(24, 24, 3, padding=1, groups=24), nn.Conv2d(24, 32, 1), Gain(32),
            nn.BatchNorm2d(32), nn.ReLU(),
        )  # fmt: skip
        self.last = nn.Conv2d(32, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.first(z).reshape(-1, 32, 4, 4) + self.start
        return self.last(self.body(x))


def official(folder: Path, **config: Any) -> Path:
    g = moved_generator(resolution=64, ngf=8, **config)
    save_snapshot(new_snapshot(g), g, folder / "official.pkl")
    return folder / "official.pkl"


def fastgan(folder: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        raw = moved(fastgan_pytorch.Generator(ngf=4, nz=16, im_size=256))
    torch.save(fastgan_content(raw, drifted(raw)), folder / "all_7.pth")
    return folder / "all_7.pth"


def lightweight(folder: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made_ = moved(lightweight_gan.Generator(**LIGHTWEIGHT))
    state = {f"GE.{k}": v for k, v in made_.state_dict().items()}
    torch.save({"GAN": state, "version": "1"}, folder / "model_1.pt")
    return folder / "model_1.pt"


def own(folder: Path, prefix: str = "") -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        state = {f"{prefix}{k}": v for k, v in moved(OwnGenerator()).state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, folder / "own.pth")
    return folder / "own.pth"


FILES: dict[str, Callable[[Path], Path]] = {
    "official": official,
    "conditional": lambda f: official(f, classes=3),
    "lite": lambda f: official(f, cfg="fastgan_lite"),
    "stylegan2": lambda f: official_file(
        f / "s.pkl", made(channel_max=16, channel_base=256, architecture="resnet")
    ),
    "fastgan": fastgan,
    "lightweight": lightweight,
    "own": own,
    "data parallel": lambda f: own(f, "module."),
}


def opened(path: Path) -> GeneratorFile:
    return open_file(path, module=OWN if path.stem.startswith("own") else None)


def narrower(
    file: GeneratorFile, preset: str = "exact", width: float = 0.5, calibrate: int = 8
) -> FileConversion:
    return convert_file(file, preset=preset, width=width, init="svd", calibrate=calibrate)


def _further(*kinds: str) -> list[Any]:
    return [pytest.param(kind, marks=pytest.mark.extended) for kind in kinds]


# The others are read and written by the same code as one of these.
FIRST = ("official", "stylegan2", "lightweight", "own")
KINDS = [*FIRST, *_further(*(k for k in FILES if k not in FIRST))]

Made = Callable[[str], tuple[Path, GeneratorFile, FileConversion]]


@pytest.fixture(scope="module")
def narrowed(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A function that returns a file of a kind, opened, and its conversion; each is made once."""

    @functools.cache
    def made_(kind: str) -> tuple[Path, GeneratorFile, FileConversion]:
        path = FILES[kind](tmp_path_factory.mktemp("narrowed"))
        file = opened(path)
        return path, file, narrower(file)

    return made_


def pictures(file: GeneratorFile, model: nn.Module) -> Tensor:
    sampler = file.inputs()
    assert sampler is not None
    torch.manual_seed(2)
    return output(file.picture(model), *sampler(2, torch.Generator().manual_seed(1)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_written_read_and_converted_again(narrowed: Made, kind: str, tmp_path: Path) -> None:
    path, file, result = narrowed(kind)
    kept = result.main[1].kept
    assert len(kept) >= 3
    assert all(c.kept == kept for c in result.conversions.values())
    before, after = result.main[1].before, result.main[1].after
    assert before.macs is not None
    assert after.macs is not None
    assert after.macs < 0.8 * before.macs
    out = tmp_path / f"{path.stem}-narrower{path.suffix}"
    save_file(file, result.models, out)
    back = opened(out)
    assert back.generators == file.generators
    for key in back.generators:
        wanted = pictures(file, result.models[key])
        assert wanted.std() > 0
        assert torch.equal(pictures(back, back.module(key)), wanted)
    again = narrower(back, "fast", width=1.0, calibrate=2)
    save_file(back, again.models, tmp_path / f"{path.stem}-again{path.suffix}")
    last = opened(tmp_path / f"{path.stem}-again{path.suffix}")
    assert torch.equal(pictures(last, last.generator), pictures(back, again.main[1].model))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["official", *_further("conditional", "own")])
def test_the_commands_read_it(
    narrowed: Made, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, file, result = narrowed(kind)
    out = tmp_path / f"{path.stem}-narrower{path.suffix}"
    save_file(file, result.models, out)
    own_ = ["--module", OWN.factory, "--input", "12"] if kind == "own" else []
    assert main(["inspect", "--json", str(out), *own_]) == 0
    assert json.loads(capsys.readouterr().out)
    assert main(["report", str(path), str(out), *own_]) == 0
    label = ["--class", "1"] if kind == "conditional" else []
    png = str(tmp_path / "a.png")
    assert main(["generate", str(out), "--seeds", "0-1", "--out", png, *label, *own_]) == 0
    tensors = str(tmp_path / "plain.safetensors")
    export = ["export", str(out), "--format", "safetensors", "--out", tensors, *own_]
    assert main(export) == 0
    capsys.readouterr()
    plain = open_file(tensors, module=OWN if kind == "own" else None)
    z = pictures(opened(out), opened(out).generator)
    assert (pictures(plain, plain.generator) - z).abs().max() < 1e-4 * z.abs().max()


@pytest.mark.slow
def test_ngf_is_that_of_the_widest_block(narrowed: Made) -> None:
    _, file, result = narrowed("official")
    model: Any = result.main[1].model
    facts = file.adapter.describe(model) if file.adapter else {}
    assert facts["cfg"] == "fastgan"
    assert 4 <= facts["ngf"] <= 8
    assert file.adapter is not None
    # At least as wide everywhere as the narrower one: a recipe only removes channels.
    wide = file.adapter.build(facts)
    restructure(wide, describe_changes(wide, model, complete=True))
    assert {k: v.shape for k, v in wide.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    } or any("weight_orig" in k for k in wide.state_dict())


@pytest.mark.slow
def test_a_stranger_loads_it_in_three_lines(narrowed: Made, tmp_path: Path) -> None:
    _, file, result = narrowed("own")
    save_file(file, result.models, tmp_path / "fast.pth")
    content = torch.load(tmp_path / "fast.pth", weights_only=True)
    generator = restructure(OwnGenerator(), content["dsconvert"])
    generator.load_state_dict(content["state_dict"])
    z = torch.randn(2, 12)
    assert torch.equal(output(generator.eval(), z), output(result.main[1].model, z))
    recipe = content["dsconvert"]["recipe"]
    assert recipe["shapes"]["body.8"] == {"gain": [1, 16, 1, 1], "shift": [16]}
    assert recipe["attributes"]["body.8"] == {"channels": 16}


@pytest.mark.parametrize(
    "shapes",
    [
        {"body.8": {"gain": [1, 33, 1, 1]}},
        {"body.8": {"gain": [1, 0, 1, 1]}},
        {"body.8": {"gain": [1, -4, 1, 1]}},
        {"body.8": {"gain": [1, True, 1, 1]}},
        {"body.8": {"gain": [1, 16.0, 1, 1]}},
        {"body.8": {"gain": [16]}},
        {"body.8": {"gain": 16}},
        {"body.8": {"gain": "1611"}},
        {"body.8": {"forward": [16]}},
        {"body.8": {"__class__": [16]}},
        {"nobody": {"gain": [16]}},
        {"": {"training": [16]}},
    ],
    ids=str,
)
def test_hostile_shapes_are_refused(shapes: Any) -> None:
    recipe = {"replaced": {}, "removed": [], "eps": {}, "shapes": shapes}
    with pytest.raises(ValueError, match="has no"):
        restructure(OwnGenerator(), recipe)


def test_a_larger_tensor_is_not_described() -> None:
    first, second = Gain(8), Gain(16)
    with pytest.raises(ValueError, match="larger than the original's"):
        describe_changes(first, second)
