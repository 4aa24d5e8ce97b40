"""The architecture written afresh: sizes, inputs, and the official code where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from dsconvert_adapters.projected_gan import ADAPTER, Generator
from torch import nn
from torch.nn.utils.spectral_norm import SpectralNorm

from dsconvert.adapter import Adapter, adapter_for, adapters
from dsconvert.errors import AdapterError

if TYPE_CHECKING:
    from pathlib import Path

ROOT = os.environ.get("PROJECTED_GAN_ROOT")


def make(**config: object) -> Generator:
    torch.manual_seed(0)
    return Generator.from_config(**{"ngf": 2, "z_dim": 16, **config})  # type: ignore[arg-type]


def test_it_is_found_by_its_entry_point() -> None:
    assert ADAPTER in adapters()
    assert isinstance(ADAPTER, Adapter)
    assert adapter_for(make()) is ADAPTER
    assert adapter_for(nn.Linear(1, 1)) is None


@pytest.mark.slow
@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("cfg", ["fastgan", "fastgan_lite"])
@pytest.mark.parametrize(
    ("resolution", "ngf"),
    [
        (64, 2),
        (256, 2),
        (1024, 8),
        *(pytest.param(*each, marks=pytest.mark.extended) for each in ((128, 2), (512, 4))),
    ],
)
def test_every_configuration_runs(resolution: int, ngf: int, cfg: str, classes: int) -> None:
    model = make(resolution=resolution, ngf=ngf, cfg=cfg, classes=classes)
    inputs = ADAPTER.sampler(model)(1, torch.Generator().manual_seed(1))
    with torch.no_grad():
        image = model(*inputs)
    assert image.shape == (1, 3, resolution, resolution)
    assert image.isfinite().all()
    facts = ADAPTER.describe(model)
    assert facts == {
        "cfg": cfg,
        "resolution": resolution,
        "ngf": ngf,
        "lite": cfg == "fastgan_lite",
        "z_dim": 16,
        "conditional": classes > 0,
        "classes": classes,
        "embedding_rows": 1000 if classes else None,
        "img_channels": 3,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_image_channels(channels: int) -> None:
    model = make(resolution=128, img_channels=channels)
    with torch.no_grad():
        assert model(torch.randn(2, 16), torch.zeros(2, 0)).shape == (2, channels, 128, 128)
    assert ADAPTER.describe(model)["img_channels"] == channels


def test_the_full_size_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = Generator(ngf=128)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == 105.7


def test_the_sampler_is_seeded_and_one_hot() -> None:
    model = make(classes=5)
    sample = ADAPTER.sampler(model)
    z, c = sample(64, torch.Generator().manual_seed(3))
    again = sample(64, torch.Generator().manual_seed(3))
    assert torch.equal(z, again[0])
    assert torch.equal(c, again[1])
    assert z.shape == (64, 16)
    assert c.shape == (64, 5)
    assert torch.equal(c.sum(1), torch.ones(64))
    assert c.sum(0).count_nonzero() == 5
    assert 0.9 < float(z.std()) < 1.1


def test_other_models_are_refused() -> None:
    with pytest.raises(AdapterError, match="Linear"):
        ADAPTER.describe(nn.Linear(1, 1))
    with pytest.raises(AdapterError, match="Linear"):
        ADAPTER.sampler(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="stylegan2"):
        Generator.from_config(cfg="stylegan2")
    with pytest.raises(ValueError, match="32"):
        Generator.from_config(resolution=32)


def test_noise_is_drawn_in_execution_order() -> None:
    model = make(resolution=128)
    for module in model.modules():
        if isinstance(module, ADAPTER.noise_types()):
            module.weight.data.fill_(0.5)
    z, c = torch.randn(1, 16), torch.zeros(1, 0)
    draws: list[torch.Size] = []
    real = torch.randn

    def spy(*size: int, **kwargs: object) -> torch.Tensor:
        draws.append(torch.Size(size))
        return real(*size, **kwargs)  # type: ignore[arg-type]

    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn", spy)
        torch.manual_seed(0)
        first = model(z, c)
        torch.manual_seed(0)
        second = model(z, c)
    assert torch.equal(first, second)
    assert draws[:10] == [(1, 1, s, s) for s in (8, 8, 16, 16, 32, 32, 64, 64, 128, 128)]


def test_untrained_spectral_norms_are_settled() -> None:
    model = make(resolution=128, ngf=4)
    checked = 0
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):
                weight = hook.compute_weight(module, do_power_iteration=False)
                matrix = hook.reshape_weight_to_matrix(weight)
                assert 0.9 < float(torch.linalg.matrix_norm(matrix, 2)) < 1.5
                checked += 1
    assert checked == 20


OFFICIAL = """
import sys, torch
from pg_modules.networks_fastgan import Generator
config, state, latents, out = torch.load(sys.argv[1], weights_only=False)
lite = config.pop("lite")
g = Generator(**config, synthesis_kwargs=dict(lite=lite)).eval()
g.load_state_dict(state)                      # strict
train = Generator(**config, synthesis_kwargs=dict(lite=lite)).train()
train.load_state_dict(state)
torch.manual_seed(0)
with torch.no_grad():
    image = g(*latents)
    trained = train(*latents)
torch.save((image, trained, train.state_dict()), out)
"""


@pytest.mark.skipif(not ROOT, reason="PROJECTED_GAN_ROOT does not name the official repo")
@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("lite", [False, True])
@pytest.mark.parametrize("resolution", [128, 256, 512, 1024])
def test_against_the_official_code(
    tmp_path: Path, resolution: int, lite: bool, classes: int
) -> None:
    """Same state dict, same image, same training-mode statistics and power iterations."""
    if classes and resolution > 256:
        pytest.skip("the official conditional generator can't be built above 256 px")
    model = make(
        resolution=resolution,
        ngf=8,
        cfg="fastgan_lite" if lite else "fastgan",
        classes=classes,
    )
    for name, parameter in model.named_parameters():
        if parameter.numel() == 1 and name.endswith("weight"):
            parameter.data.fill_(0.4)
    latents = ADAPTER.sampler(model)(2, torch.Generator().manual_seed(0))
    config = {
        "z_dim": 16,
        "c_dim": classes,
        "img_resolution": resolution,
        "ngf": 8,
        "cond": classes > 0,
        "lite": lite,
    }
    given, out = tmp_path / "given.pt", tmp_path / "out.pt"
    torch.save((config, model.state_dict(), latents, out), given)
    subprocess.run(
        [sys.executable, "-c", OFFICIAL, str(given)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
    )
    image, trained, state = torch.load(out)
    torch.manual_seed(0)
    with torch.no_grad():
        assert (model(*latents) - image).abs().max() <= 1e-4
        model.train()
        assert (model(*latents) - trained).abs().max() <= 1e-3
    ours = model.state_dict()
    assert list(ours) == list(state)
    for key, value in state.items():
        assert torch.allclose(ours[key].float(), value.float(), atol=1e-4), key
