"""StyleGAN3's and StyleGAN-XL's generators from their facts: safetensors and hub folders."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from dsconvert_adapters.stylegan3 import ADAPTER, Generator

from dsconvert import from_pretrained, load_generator, open_file, save_pretrained
from dsconvert.errors import AdapterError
from dsconvert.formats.convert_file import convert_file
from dsconvert.formats.export_file import export_file
from dsconvert.formats.official import load_snapshot, save_snapshot
from tests.adapters.stylegan3_files import RADIAL, by_class, images, made, official, official_file

KINDS: dict[str, Any] = {
    "-t": lambda: made(),
    "-r": lambda: made(**RADIAL),
    "conditional": lambda: made(c_dim=3),
    "xl": lambda: by_class(made(c_dim=3), up=True),
    "xl without classes": lambda: by_class(made()),
}
CONVERTED: dict[str, dict[str, Any]] = {
    "fast": {"preset": "fast", "calibrate": 0},
    "narrower": {"preset": "none", "width": 0.5, "calibrate": 8},
}


def file_of(g: Generator, folder: Path) -> Path:
    return official_file(folder / "sg3.pkl", official(g, "official = True\n"))


@pytest.mark.parametrize("kind", KINDS)
def test_as_safetensors(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    g = KINDS[kind]()
    made = export_file(open_file(file_of(g, tmp_path)), tmp_path / "g.safetensors")
    assert made.error < 1e-6
    again = load_generator(tmp_path / "g.safetensors")
    assert torch.equal(images(again), images(g))
    assert type(again).__name__ == type(g).__name__


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["-t", pytest.param("xl", marks=pytest.mark.extended)])
@pytest.mark.parametrize("options", CONVERTED.values(), ids=CONVERTED)
def test_a_converted_one(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    snap = load_snapshot(file_of(KINDS[kind](), tmp_path))
    result = convert_file(snap, init="svd", **options).models
    save_snapshot(snap, result, tmp_path / "fast.pkl")
    save_pretrained(open_file(tmp_path / "fast.pkl"), tmp_path / "hub")
    assert torch.equal(images(from_pretrained(tmp_path / "hub")), images(result["G_ema"]))


def test_facts_that_fit_nothing_are_refused() -> None:
    facts: Any = ADAPTER.describe(made())
    name = next(iter(facts["structure"]))

    def refused(change: Any) -> str:
        wrong = copy.deepcopy(facts)
        change(wrong)
        with pytest.raises(AdapterError, match="no facts of a StyleGAN3 generator") as caught:
            ADAPTER.build(wrong)
        return str(caught.value)

    def layer(**values: Any) -> str:
        return refused(lambda f: f["structure"][name].update(values))

    assert "up_factor" in layer(up=3)
    assert "neither 1x1 nor 3x3" in layer(kernel=5)
    assert "sizes do not lead to 32 pixels" in layer(padding=[0, 0, 0, 0])
    assert "padding that is not four" in layer(padding=[1.5] * 4)
    assert "does not fit" in layer(
        inputs=5, affine={**facts["structure"][name]["affine"], "outputs": 5}
    )
    assert "none of 1 to" in layer(outputs=1 << 17)
    assert "in the place of a number" in layer(beta="x")
    assert "output_scale" in refused(lambda f: f.pop("output_scale"))
    refused(lambda f: f.update(structure={}))
    refused(lambda f: f.update(structure=[1]))
    refused(lambda f: f["mapping"].update(fully_connected=[]))
    refused(lambda f: f["mapping"]["fully_connected"][0].update(more=1))
