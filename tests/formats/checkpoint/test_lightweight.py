"""lightweight-gan's files, made and read by the package itself (its CUDA calls stubbed)."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import torch
from dsconvert_adapters.lightweight_gan import ADAPTER, Generator
from torch import nn

from dsconvert import convert_file, open_file, save_file
from dsconvert.formats.restructure import restructure
from dsconvert.model.blank import blank
from tests.made_models import moved
from tests.models import output

Z = torch.randn(2, 16, generator=torch.Generator().manual_seed(4))
OPTIONS: dict[str, dict[str, Any]] = {
    # The package swaps its Blur for good once a trainer without antialias was made.
    "antialias, gates": {"image_size": 128, "antialias": True},
    "attention": {"image_size": 64, "attn_res_layers": [16]},
    "frequency gates, alpha": {"image_size": 128, "freq_chan_attn": True, "transparent": True},
    "grey": {"image_size": 32, "greyscale": True},
}


def trainer(code: ModuleType, folder: Path, **options: Any) -> Any:
    made = code.Trainer(base_dir=folder, use_aim=False, latent_dim=16, fmap_max=16, **options)
    # A file's settings are read from a side file, which forgets this one.
    init = made.init_GAN

    def init_gan() -> None:
        made.fmap_max = 16
        init()

    made.init_GAN = init_gan
    return made


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(options, id=name, marks=[] if name == "grey" else pytest.mark.slow)
        for name, options in OPTIONS.items()
    ],
)
def test_the_package_reads_what_comes_back(
    lightweight_code: ModuleType, tmp_path: Path, options: dict[str, Any]
) -> None:
    with mock.patch.object(nn.Module, "cuda", lambda self, *_: self), torch.random.fork_rng():
        torch.manual_seed(0)
        old = trainer(lightweight_code, tmp_path, **options)
        old.init_GAN()
        moved(old.GAN)
        moved(old.GAN.GE, seed=9)
        old.save(1)

        file = open_file(old.model_name(1))
        assert file.generators == ("GE", "G")
        assert bool(file.config["antialias"]) == bool(options.get("antialias"))
        for key in file.generators:
            theirs, ours = output(getattr(old.GAN, key), Z), output(file.module(key), Z)
            assert theirs.shape[-1] == options["image_size"]
            assert (theirs - ours).abs().max() < 1e-5 * theirs.abs().max()
        picture = output(file.picture(), Z)
        assert torch.allclose(picture, output(file.generator, Z) * 2 - 1)

        result = convert_file(file, preset="fast", init="svd", calibrate=0)
        save_file(file, result.models, old.model_name(2))
        new = trainer(lightweight_code, tmp_path, **options)
        recipes = torch.load(old.model_name(2), weights_only=True)["dsconvert"]["recipes"]
        init = new.init_GAN

        def converted() -> None:
            init()
            restructure(new.GAN.G, recipes["G"])
            restructure(new.GAN.GE, recipes["GE"])

        new.init_GAN = converted
        new.load(2)
        new.GAN.eval()
        for key in file.generators:
            theirs, ours = output(getattr(new.GAN, key), Z), output(result.models[key], Z)
            assert (theirs - ours).abs().max() < 1e-5 * theirs.abs().max()
            before = sum(p.numel() for p in getattr(old.GAN, key).parameters())
            assert sum(p.numel() for p in getattr(new.GAN, key).parameters()) < 0.7 * before


def test_without_the_package() -> None:
    """The shapes alone: every option goes through a state dict and comes back the same."""
    config: dict[str, Any] = {
        "latent_dim": 16,
        "channels": [16, 16, 16, 8, 8, 8],
        "out_channels": 3,
        "gates": {"1": "context"},
        "attention": {"2": 1},
        "antialias": True,
    }
    made = ADAPTER.make(config)
    assert isinstance(made, Generator)
    moved(made)
    state = {f"GE.{k}": v for k, v in made.state_dict().items()}
    states = ADAPTER.states({"GAN": state})
    assert list(states) == ["GE"]
    assert ADAPTER.read_config(states["GE"]) == config
    assert output(made, Z).shape == (2, 3, 128, 128)
    assert ADAPTER.describe(made)["image_size"] == 128
    assert ADAPTER.sampler(made)(3, torch.Generator().manual_seed(0))[0].shape == (3, 16)


def test_no_memory_is_taken_for_a_gate_that_a_file_fills() -> None:
    config = {
        "latent_dim": 8, "channels": [8, 8, 1 << 18, 8, 8, 8, 8], "out_channels": 3,
        "gates": {"1": "frequency"}, "attention": {}, "antialias": False,
    }  # fmt: skip
    with blank():
        made = ADAPTER.make(config)
    assert all(t.is_meta for t in made.state_dict().values())
