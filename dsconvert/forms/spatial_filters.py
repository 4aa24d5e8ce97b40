"""Describe a convolution as phases of small kernels, for :mod:`dsconvert.forms.bands`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from dsconvert.forms.bands import BandedConvolution, Phase
from dsconvert.model.upsampling import upsampled

_PLACES = ((0, 0), (0, 1), (1, 0), (1, 1))
_FOUR = tuple(
    Phase(row=row, column=column, step=2, above=1 - row, left=1 - column) for row, column in _PLACES
)
_WIDE = 1 << 20
"""Numbers of a dense kernel above which each band would spend its time on the kernel's layout."""


@dataclass(frozen=True, kw_only=True)
class SpatialFilter:
    """A convolution of stride 1, or one behind a nearest x2 upsample, as phases.

    Attributes:
        phases: the positions of the output that each phase makes.
        kernels: for each phase (O, C, kh, kw): C input channels an output (dense: all).
        kind: ``gather``: C channels an output, depthwise for C = 1; ``spread``: the outputs
            ``i R`` to ``i R + R - 1`` of input i; ``dense``.
        inputs: I, the channels of its input.
        bias: (O,).
    """

    phases: tuple[Phase, ...]
    kernels: tuple[Tensor, ...]
    kind: str
    inputs: int
    bias: Tensor | None

    @property
    def outputs(self) -> int:
        """O."""
        return self.kernels[0].shape[0]

    @property
    def upsamples(self) -> bool:
        """Whether the output has twice the size."""
        return len(self.phases) == 4

    @property
    def is_depthwise(self) -> bool:
        """Whether it has one channel in and out a group: rank 1."""
        return self.kind == "gather" and self.kernels[0].shape[1] == 1

    @property
    def takes_front(self) -> bool:
        """Whether a pointwise convolution in front can be part of it."""
        return self.kind == "gather"

    @property
    def takes_back(self) -> bool:
        """Whether a pointwise convolution behind can be part of it."""
        return self.kind == "spread" or self.is_depthwise

    @property
    def needs_back(self) -> bool:
        """Whether it can't stand without one: no operator makes its R outputs fast."""
        return self.kind == "spread"

    @property
    def worth_alone(self) -> bool:
        """Whether it is faster in bands without a pointwise convolution beside it."""
        return self.kernels[0].numel() <= _WIDE

    def upsampled(self) -> SpatialFilter | None:
        """Return the same 3 x 3 filter behind a nearest x2 upsample, or None."""
        phase, kernel = self.phases[0], self.kernels[0]
        if kernel.shape[-2:] != (3, 3) or (phase.above, phase.left) != (1, 1) or self.upsamples:
            return None
        full = upsampled(kernel.double()).to(kernel.dtype)
        return replace(self, phases=_FOUR, kernels=_parts(full))


def _parts(kernel: Tensor) -> tuple[Tensor, ...]:
    """Return the kernels (O, C, 2, 2) of the four phases of a transposed one (O, C, 4, 4)."""
    # Even output rows see kernel rows 3 and 1, odd ones 2 and 0; columns alike.
    return tuple(kernel[:, :, 1 - row :: 2, 1 - column :: 2].flip(2, 3) for row, column in _PLACES)


def filter_of(conv: Any) -> SpatialFilter | None:
    """Return the phases of ``conv``, or None where it is of another kind."""
    if not isinstance(conv, nn.Conv2d | nn.ConvTranspose2d) or conv.dilation != (1, 1):
        return None
    weight = conv.weight.detach()
    bias = None if conv.bias is None else conv.bias.detach()
    i, o, groups = conv.in_channels, conv.out_channels, conv.groups
    if groups not in (1, i, o) or conv.padding_mode != "zeros":
        return None
    kind = "gather" if groups == o else "spread" if groups == i else "dense"
    if isinstance(conv, nn.ConvTranspose2d):
        geometry = (conv.kernel_size, conv.stride, conv.padding, conv.output_padding)
        if geometry != ((4, 4), (2, 2), (1, 1), (0, 0)) or kind == "spread":
            return None
        # (I, O / groups, 4, 4) to (O, I / groups, 4, 4)
        full = weight.transpose(0, 1) if groups == 1 else weight.reshape(o, i // o, 4, 4)
        kernels, phases = _parts(full), _FOUR
    else:
        taps = conv.kernel_size
        padding = conv.padding
        if padding == "same" and taps[0] % 2 == taps[1] % 2 == 1:
            padding = (taps[0] // 2, taps[1] // 2)
        if conv.stride != (1, 1) or isinstance(padding, str) or taps == (1, 1):
            return None
        if padding[0] >= taps[0] or padding[1] >= taps[1]:
            return None
        kernels = (weight,)
        phases = (Phase(row=0, column=0, step=1, above=padding[0], left=padding[1]),)
    return SpatialFilter(phases=phases, kernels=kernels, kind=kind, inputs=i, bias=bias)


def mixed(
    spatial: SpatialFilter,
    *,
    front: nn.Conv2d | None,
    back: nn.Conv2d | None,
    noise: Tensor | None,
    gate: bool,
) -> BandedConvolution:
    """Return the module of ``spatial`` with the pointwise convolutions around it."""
    kernels = [[k] for k in spatial.kernels]
    repeat, matrices, bias = 1, [], spatial.bias
    groups = spatial.outputs if spatial.kind == "gather" else 1
    matrix = None
    if front is not None:
        # The rows (O, R) of the pointwise in the order (R, O), the kernels with R side by side.
        repeat = spatial.inputs // spatial.outputs
        matrix = front.weight.detach().reshape(spatial.outputs, repeat, -1)
        matrix = matrix.transpose(0, 1).flatten(0, 1)
        kernels = [[k.permute(0, 2, 3, 1).flatten(2).unsqueeze(1)] for k in spatial.kernels]
    if back is not None:
        point = back.weight.detach().flatten(1)
        groups = spatial.inputs
        summands = spatial.outputs // spatial.inputs if spatial.kind == "spread" else 1
        if front is not None:
            groups, summands = spatial.outputs, 1
        kernels = [[k[r::summands] for r in range(summands)] for (k,) in kernels]
        matrices = [point[:, r::summands] for r in range(summands)]
        own = None if back.bias is None else back.bias.detach()
        if bias is not None:
            bias = (point.double() @ bias.double()).to(point.dtype)
            bias = bias if own is None else bias + own
        else:
            bias = own
    return BandedConvolution(
        phases=spatial.phases,
        kernels=kernels,
        groups=groups,
        front=matrix,
        repeat=repeat,
        back=matrices,
        bias=bias,
        noise=noise,
        gate=gate,
    )
