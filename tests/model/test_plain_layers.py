"""Which layers compute as torch's own classes."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils import parametrizations

from dsconvert.model.plain_layers import computes_as


class Initialised(nn.Conv2d):
    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)


class Padded(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        return nn.functional.conv2d(input, weight, bias, padding=1)


class Called(nn.Conv2d):
    def __call__(self, x: Tensor) -> Tensor:
        return 2 * super().__call__(x)


def test_which_layers_compute_as_torch_does() -> None:
    assert computes_as(nn.Conv2d(3, 3, 3), nn.Conv2d)
    assert computes_as(Initialised(3, 3, 3), nn.ConvTranspose2d, nn.Conv2d)
    assert computes_as(parametrizations.weight_norm(nn.Conv2d(3, 3, 3)), nn.Conv2d)
    assert computes_as(nn.UpsamplingNearest2d(scale_factor=2), nn.Upsample)
    assert not computes_as(nn.Conv1d(3, 3, 3), nn.Conv2d)
    assert not computes_as(Padded(3, 3, 3), nn.Conv2d)
    assert not computes_as(Called(3, 3, 3), nn.Conv2d)
    assert not computes_as(nn.Conv2d(3, 3, 3))
    one = nn.Conv2d(3, 3, 3)
    one.forward = one.forward  # type: ignore[method-assign]
    assert not computes_as(one, nn.Conv2d)
