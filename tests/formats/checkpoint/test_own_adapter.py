"""An adapter that knows one layout alone: its state dicts are found at other places, too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dsconvert import convert_file, inspect_file, open_file, save_file
from dsconvert.adapter import Adapter
from dsconvert.errors import UnsupportedSnapshotError
from dsconvert.report.inspection import inspection
from dsconvert.testing import check_adapter
from tests.models import Decoder, Noise, decoder, latents, output

Z = torch.randn(2, 16, generator=torch.Generator().manual_seed(4))


class OneLayout(Adapter):
    """Knows ``{"netG": state}``."""

    name = "one_layout"

    def matches(self, model: nn.Module) -> bool:
        return isinstance(model, Decoder)

    def describe(self, generator: nn.Module) -> Mapping[str, Any]:
        return {"cfg": "plain", "resolution": 32, "z_dim": 16}

    def sampler(self, model: nn.Module) -> Any:
        return latents

    def noise_types(self) -> tuple[type[nn.Module], ...]:
        return (Noise,)

    def states(self, checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"netG": checkpoint["netG"]} if "netG" in checkpoint else {}

    def read_config(self, state: Mapping[str, torch.Tensor]) -> Mapping[str, Any]:
        return {"bias": "head.bias" in state}

    def make(self, config: Mapping[str, Any]) -> nn.Module:
        return Decoder()

    def replaced(self, checkpoint: Mapping[str, Any], states: Mapping[str, Any]) -> dict[str, Any]:
        return {**checkpoint, **states}


ADAPTER = OneLayout()


def content(place: str) -> dict[str, Any]:
    state = dict(decoder().state_dict())
    return {
        "own": {"netG": state, "epoch": 3},
        "bare": state,
        "prefixed": {"model": {f"module.{k}": v for k, v in state.items()}, "epoch": 3},
    }[place]


@pytest.mark.slow
def test_the_adapter_conforms() -> None:
    check_adapter(ADAPTER, decoder(), checkpoint=content("own"))


@pytest.mark.parametrize(
    ("place", "suffix"),
    [
        ("own", ".pth"),
        ("bare", ".safetensors"),
        ("prefixed", ".pth"),
        pytest.param("own", ".safetensors", marks=pytest.mark.extended),
        pytest.param("bare", ".pth", marks=pytest.mark.extended),
        pytest.param("prefixed", ".safetensors", marks=pytest.mark.extended),
    ],
)
def test_a_state_dict_is_found_at_each_place(place: str, suffix: str, tmp_path: Path) -> None:
    if suffix == ".safetensors":
        pytest.importorskip("safetensors")
    torch.save(content(place), tmp_path / "a.pth")
    file = open_file(tmp_path / "a.pth", adapters=[ADAPTER])
    assert torch.equal(output(file.generator, Z), output(decoder(), Z))
    made = convert_file(file, rank=1, init="svd", calibrate=0)
    save_file(file, made.models, tmp_path / f"b{suffix}")
    again = open_file(tmp_path / f"b{suffix}", adapters=[ADAPTER])
    assert again.adapter is ADAPTER
    assert torch.equal(output(again.generator, Z), output(made.main[1].model, Z))
    # And back to a checkpoint.
    save_file(again, {again.generators[0]: again.generator}, tmp_path / "c.pth")
    last = open_file(tmp_path / "c.pth", adapters=[ADAPTER])
    assert torch.equal(output(last.generator, Z), output(again.generator, Z))


@pytest.mark.slow
def test_other_tensors_are_refused(tmp_path: Path) -> None:
    state = content("bare")
    for name, wrong in (
        ("less", dict(list(state.items())[:-1])),
        ("more", {**state, "further.weight": torch.ones(2)}),
        ("shape", {k: v[..., :1] if v.dim() == 4 else v for k, v in state.items()}),
    ):
        torch.save(wrong, tmp_path / f"{name}.pth")
        with pytest.raises(UnsupportedSnapshotError, match="no installed adapter knows"):
            open_file(tmp_path / f"{name}.pth", adapters=[ADAPTER])


@pytest.mark.slow
def test_a_damaged_mark_is_refused(tmp_path: Path) -> None:
    torch.save(content("bare"), tmp_path / "a.pth")
    file = open_file(tmp_path / "a.pth", adapters=[ADAPTER])
    save_file(file, convert_file(file, rank=1, init="svd", calibrate=0).models, tmp_path / "b.pth")
    whole = torch.load(tmp_path / "b.pth", weights_only=True)
    for mark in (
        {k: v for k, v in whole["dsconvert"].items() if k != "adapter"},
        {**whole["dsconvert"], "recipes": {"state_dict": {"replaced": 3}}},
        {**whole["dsconvert"], "recipes": {}},
    ):
        torch.save({**whole, "dsconvert": mark}, tmp_path / "c.pth")
        with pytest.raises(UnsupportedSnapshotError, match="no installed adapter knows"):
            open_file(tmp_path / "c.pth", adapters=[ADAPTER])


def test_inspect_shows_the_facts_of_describe(tmp_path: Path) -> None:
    torch.save(content("own"), tmp_path / "a.pth")
    facts = json.loads(json.dumps(inspect_file(tmp_path / "a.pth", adapters=[ADAPTER]).as_dict()))
    assert facts["config"] == {
        "cfg": "plain", "resolution": 32, "z_dim": 16, "bias": facts["config"]["bias"],
    }  # fmt: skip
    said = "\n".join(inspection(facts))
    assert "cfg plain" in said
    assert "32 x 32 px" in said
