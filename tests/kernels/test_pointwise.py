"""The 1 x 1 convolution: by torch's convolution and by its matrix product."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsconvert import kernels
from dsconvert.kernels import choice, is_pointwise, pointwise, use

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WAYS = pytest.mark.parametrize("way", [0, 1], ids=["convolution", "product"])


def tensors(
    shape: tuple[int, ...] = (3, 5, 4, 6), outputs: int = 7, *, last: bool = False,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    random = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=random, dtype=torch.float64).to(DEVICE, dtype)

    form = torch.channels_last if last else torch.contiguous_format
    x = draw(*shape).contiguous(memory_format=form)
    found = (x, draw(outputs, shape[1], 1, 1), draw(outputs))
    return tuple(t.requires_grad_() for t in found)  # type: ignore[return-value]


def by(monkeypatch: pytest.MonkeyPatch, way: int) -> list[str]:
    """Let every operation go one way; return the keys of those that ran."""
    keys: list[str] = []

    def one(key: str, x: Tensor, ways: tuple[Callable[[], Tensor], ...]) -> Tensor:
        keys.append(key)
        return ways[way]()

    monkeypatch.setattr(choice, "faster", one)
    return keys


@WAYS
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_both_ways_are_the_convolution(
    monkeypatch: pytest.MonkeyPatch, way: int, last: bool, bias: bool
) -> None:
    keys = by(monkeypatch, way)
    x, weight, b = tensors(last=last)
    given = (x, weight, b) if bias else (x, weight)
    made = pointwise(*given)
    want = F.conv2d(*given)
    assert torch.allclose(made, want, atol=1e-12)
    form = torch.channels_last if last else torch.contiguous_format
    assert made.is_contiguous(memory_format=form)
    slope = torch.randn_like(want)
    found, wanted = (torch.autograd.grad(y, given, slope) for y in (made, want))
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(found, wanted, strict=True))
    assert found[0].is_contiguous(memory_format=form)
    assert [k.split()[0] for k in keys] == ["pointwise", "pointwise_of_x", "pointwise_of_weight"]


@WAYS
def test_gradients_of_half_precision_are_summed_in_single(
    monkeypatch: pytest.MonkeyPatch, way: int
) -> None:
    by(monkeypatch, way)
    x, weight, b = tensors((64, 3, 8, 8), dtype=torch.bfloat16)
    (found,) = torch.autograd.grad(pointwise(x, weight, b).sum(), [weight])
    want = x.detach().double().sum((0, 2, 3)).expand(7, 3)
    assert (found.double().flatten(1) - want).abs().max() <= 0.01 * want.abs().max()


def test_gradcheck_and_opcheck() -> None:
    x, weight, b = tensors((2, 3, 2, 3), 4)
    assert torch.autograd.gradcheck(pointwise, (x, weight, b), fast_mode=True)
    for last in (False, True):
        x, weight, b = tensors((2, 3, 2, 3), 4, last=last)
        torch.library.opcheck(torch.ops.dsconvert.pointwise.default, (x, weight, b))
        grad = torch.ones(2, 4, 2, 3, dtype=torch.float64, device=DEVICE)
        found = torch.ops.dsconvert.pointwise_of_x(grad, x, weight).sum()
        with pytest.raises(RuntimeError, match="has none itself"):
            found.backward()


@pytest.mark.parametrize("shape", [(0, 5, 4, 6), (1, 5, 1, 1)])
def test_maps_of_no_and_of_one_pixel(shape: tuple[int, ...]) -> None:
    x, weight, b = tensors(shape)
    made = pointwise(x, weight, b)
    assert torch.allclose(made, F.conv2d(x, weight, b), atol=1e-12)
    assert torch.autograd.grad(made.sum(), [x])[0].shape == x.shape


def test_autocast_as_the_convolution_does() -> None:
    x, weight, b = tensors(dtype=torch.float32)
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        made, want = pointwise(x, weight, b), F.conv2d(x, weight, b)
    assert made.dtype == want.dtype == torch.bfloat16
    assert torch.allclose(made.float(), want.float(), atol=0.05)


def test_a_product_is_never_rounded_further_than_the_convolution(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = by(monkeypatch, 1)
    monkeypatch.setitem(pointwise.__globals__, "rounds_to_tf32", lambda: (False, True))
    x, weight, b = tensors()
    assert torch.allclose(pointwise(x, weight, b), F.conv2d(x, weight, b), atol=1e-12)
    assert keys == []


def test_on_a_card_the_faster_way_is_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices = choice.Choices(tmp_path / "kernels.json")
    seconds: dict[object, float] = {"slow": 2.0, "fast": 1.0}
    timed: list[object] = []

    def clock(way: Callable[[], object]) -> float:
        timed.append(way())
        return seconds[timed[-1]]

    def fails() -> str:
        raise RuntimeError("CUDNN_STATUS_NOT_SUPPORTED")

    class OnCard:
        device = torch.device("cuda")

    x: Any = OnCard()
    monkeypatch.setattr(choice, "choices_of", lambda _: choices)
    monkeypatch.setattr(choice, "milliseconds", clock)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    ways = (lambda: "slow", fails, lambda: "fast")
    assert choice.faster("key", x, ways) == choice.faster("key", x, ways) == "fast"
    assert timed == ["slow", "fast"]
    # What a graph replays is another choice: there, launches by Python cost nothing.
    seconds["slow"] = 0.5
    with use.replayed():
        assert choice.faster("key", x, ways) == "slow"
    assert choice.faster("key", x, ways) == "fast"
    with kernels.using("eager"):
        assert choice.faster("key", x, ways) == "slow"
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert choice.faster("other", x, ways) == "slow"


def test_which_convolutions_are_pointwise() -> None:
    assert is_pointwise(nn.Conv2d(3, 4, 1))
    assert is_pointwise(nn.Conv2d(3, 4, 1, padding="same"))
    others = (
        nn.Conv2d(3, 4, 1, stride=2), nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(3, 4, 1, padding=1),
        nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(3, 4, 1), nn.Conv1d(3, 4, 1),
    )  # fmt: skip
    assert not any(is_pointwise(conv) for conv in others)
