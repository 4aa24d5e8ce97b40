"""A stranger's file format is detected, opened and written through the one interface."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dsconvert import ModuleSource, convert_file, open_file, save_file
from dsconvert.cli.generate import images_of
from dsconvert.config.files import Drawing
from dsconvert.errors import UsageError
from dsconvert.formats.base import FileFormat, GeneratorFile
from dsconvert.formats.registry import FORMATS, Registry
from tests.models import Decoder

MAGIC = b"toy!"


@dataclass(frozen=True, kw_only=True, eq=False)
class ToyFile(GeneratorFile):
    """Four bytes, then a state dict of :class:`tests.models.Decoder`."""

    format_name = "toy"
    suffixes = (".toy",)
    state: Mapping[str, torch.Tensor]

    def read(self, key: str) -> nn.Module:
        model = Decoder()
        model.load_state_dict(self.state)
        return model.eval()

    def inputs(self, model: nn.Module | None = None) -> Any:
        return lambda n, generator: (torch.randn(n, 16, generator=generator),)

    def save(self, models: Mapping[str, nn.Module], path: Any, *, overwrite: bool = False) -> None:
        with Path(path).open("wb") as out:
            out.write(MAGIC)
            torch.save(models["g"].state_dict(), out)

    @property
    def is_rebuildable(self) -> bool:
        return False

    def save_safetensors(self, *_: Any, **__: Any) -> Any:
        raise AssertionError


def _open(path: Path, drop: Collection[str], module: ModuleSource | None) -> ToyFile:
    with path.open("rb") as file:
        file.seek(len(MAGIC))
        state = torch.load(file, weights_only=True)
    return ToyFile(path=path, adapter=None, config={}, keys=("g",), generators=("g",), state=state)


TOY = FileFormat(
    file=ToyFile,
    detects=lambda path: path.read_bytes()[:4] == MAGIC,
    open=_open,
    inspect=lambda path, module: pytest.fail("not asked for"),
)


def test_formats_are_asked_in_order_and_duplicates_are_rejected() -> None:
    registry = Registry(FORMATS.formats)
    names = [f.name for f in registry.formats]
    assert names == ["safetensors export", "checkpoint", "official snapshot"]
    with pytest.raises(UsageError, match="no file format is called 'nothing'; there are safe"):
        registry.register(TOY, before="nothing")
    assert [f.name for f in registry.formats] == names
    registry.register(TOY, before="official snapshot")
    with pytest.raises(UsageError, match="'toy' is registered"):
        registry.register(TOY)
    assert [f.name for f in registry.formats] == [*names[:2], "toy", names[2]]
    other = Registry(FORMATS.formats)
    other.register(TOY)
    assert other.formats[0] is TOY


@pytest.mark.slow
def test_whoever_has_a_file_needs_to_know_nothing_of_its_format(
    tmp_path: Path, fastgan_file: Path
) -> None:
    torch.manual_seed(0)
    path = tmp_path / "g.toy"
    with path.open("wb") as out:
        out.write(MAGIC)
        torch.save(Decoder().state_dict(), out)
    registry = Registry(FORMATS.formats)
    registry.register(TOY)
    assert registry.format_of(fastgan_file).name == "checkpoint"
    file = registry.format_of(path).open(path, (), None)
    result = convert_file(file, preset="exact", init="svd", calibrate=0)
    assert result.main[0] == "g"
    assert save_file(file, result.models, tmp_path / "same.toy") is None
    made = save_file(file, result.models, tmp_path / "g.pt2")
    assert made is not None
    assert made.format == "torch"
    cpu = torch.device("cpu")
    assert images_of(file, (0, 1), Drawing(), lambda _: None, device=cpu).shape[0] == 2
    with pytest.raises(UsageError, match="no mapping network"):
        file.truncation(0.5)
    with pytest.raises(UsageError, match=r"ends in \.jpg"):
        save_file(file, result.models, tmp_path / "g.jpg")


@pytest.mark.slow
def test_every_built_in_file_has_the_same_members(
    snapshot_file: Path, fastgan_file: Path, tmp_path: Path
) -> None:
    pytest.importorskip("safetensors")
    plain = tmp_path / "g.safetensors"
    file = open_file(snapshot_file)
    save_file(file, {"G_ema": file.generator}, plain)
    for path in (snapshot_file, fastgan_file, plain):
        opened = open_file(path)
        sampler = opened.inputs()
        assert opened.suffixes
        assert opened.is_rebuildable
        assert opened.generator is opened.module(opened.generators[0])
        assert sampler is not None
        with torch.no_grad():
            images = opened.picture()(*sampler(1, torch.Generator().manual_seed(0)))
        assert images.dim() == 4
