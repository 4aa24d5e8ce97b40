"""Second moments of (input patch, output) pairs, which determine every least-squares fit.

A convolution is linear, so its squared error on data is a quadratic form of its kernel: with
``C = E[x x^T]`` over input patches, ``B = E[x y^T]`` and ``E[y^2]``, the error of any kernel can be
evaluated, differentiated and minimised without the data. A few ten thousand patches fix ``C``; the
maps near the image hold millions.

A transposed convolution of stride s is s x s ordinary convolutions, one for each phase of the
output, each with a few of the taps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsconvert.fit.threads import all_threads

Conv = nn.Conv2d | nn.ConvTranspose2d


@dataclass(frozen=True)
class _Phase:
    offset: tuple[int, int]
    taps: tuple[int, ...]
    """Indices into the flattened kernel."""
    shifts: tuple[tuple[int, int], ...]
    """The position that each tap reads, relative to ``step * position``."""


@dataclass(frozen=True)
class Moments:
    """Raw moments of one phase; patch features are ordered ``(tap, channel)``.

    ``xx`` is ``(T P, T P)``, ``xy`` is ``(T P, O)``, ``yy`` is ``(O,)``; ``x`` and ``y`` are means.
    The sums are not centred: padding is a real zero, and on small maps it is everywhere.
    """

    taps: tuple[int, ...]
    xx: Tensor
    xy: Tensor
    yy: Tensor
    x: Tensor
    y: Tensor

    def centred(self) -> tuple[Tensor, Tensor]:
        """Return ``xx`` and ``xy`` without a free constant an output, in double precision."""
        x, y = self.x.double(), self.y.double()
        return self.xx.double() - torch.outer(x, x), self.xy.double() - torch.outer(x, y)


_ROWS = 4096
"""Patches that are multiplied at a time at least."""
_CHUNK = 1 << 17
"""Elements that are converted to double precision at a time: the copy then stays in the cache."""
_DEVICE_CHUNK = 1 << 26
"""The same on a GPU, which converts within its sum: the differences take 256 MiB."""


def _sums(values: Tensor, shift: Tensor | None = None) -> Tensor:
    """Return the sums over batch and space of maps or of vectors (N, C), ``(C,)`` in double.

    With ``shift (C,)`` they are the sums of the squared differences from it.
    """
    flat = values.flatten(2) if values.dim() > 2 else values.unsqueeze(2)
    if values.device.type != "cpu":  # no cache to stay in, and each launch costs time
        many = max(1, _DEVICE_CHUNK // max(1, flat[0].numel()))
        parts = flat.split(many)
        if shift is not None:
            parts = ((part - shift[:, None]).square() for part in parts)
        return torch.stack([part.sum((0, 2), dtype=torch.float64) for part in parts]).sum(0)
    total = flat.new_zeros(flat.shape[1], dtype=torch.float64)
    rows = max(1, _CHUNK // max(1, flat.shape[2]))
    for sample in flat:
        for first, part in zip(range(0, len(total), rows), sample.split(rows), strict=True):
            here = slice(first, first + rows)
            if shift is not None:
                part = (part - shift[here, None]).square()
            total[here] += part.double().sum(1)
    return total


def channel_mean(values: Sequence[Tensor]) -> Tensor:
    """Return the mean over batch and space, ``(C,)``."""
    count = sum(v.numel() // v.shape[1] for v in values)
    return (torch.stack([_sums(v) for v in values]).sum(0) / count).to(values[0].dtype)


def channel_variance(values: Sequence[Tensor], mean: Tensor) -> Tensor:
    """Return the variance over batch and space, ``(C,)``."""
    count = sum(v.numel() // v.shape[1] for v in values)
    return (torch.stack([_sums(v, mean) for v in values]).sum(0) / count).to(values[0].dtype)


def second_moment(values: Sequence[Tensor]) -> Tensor:
    """Return ``E[x x^T]`` between channels over batch and space, ``(C, C)`` in double precision."""
    channels = values[0].shape[1]
    result = values[0].new_zeros(channels, channels, dtype=torch.float64)
    count = 0
    for v in values:
        flat = v.permute(1, 0, 2, 3).flatten(1)
        result += (flat @ flat.t()).double()
        count += flat.shape[1]
    return result / count


def _pairs(value: tuple[int, ...] | str, conv: Conv) -> tuple[int, int]:
    if isinstance(value, str):  # "same" or "valid", stride 1
        if value == "valid":
            return (0, 0)
        return (
            conv.dilation[0] * (conv.kernel_size[0] - 1) // 2,
            conv.dilation[1] * (conv.kernel_size[1] - 1) // 2,
        )
    return (int(value[0]), int(value[1]))


def _phases(conv: Conv) -> tuple[_Phase, ...]:
    (kh, kw), (dh, dw) = conv.kernel_size, conv.dilation
    ph, pw = _pairs(conv.padding, conv)
    if isinstance(conv, nn.Conv2d):
        taps = [(y, x) for y in range(kh) for x in range(kw)]
        return (
            _Phase(
                (0, 0),
                tuple(y * kw + x for y, x in taps),
                tuple((y * dh - ph, x * dw - pw) for y, x in taps),
            ),
        )
    sh, sw = conv.stride
    phases: list[_Phase] = []
    for a in range(sh):
        for b in range(sw):
            taps = [
                (y, x)
                for y in range(kh)
                for x in range(kw)
                if (a + ph - y * dh) % sh == 0 and (b + pw - x * dw) % sw == 0
            ]
            phases.append(
                _Phase(
                    (a, b),
                    tuple(y * kw + x for y, x in taps),
                    tuple(((a + ph - y * dh) // sh, (b + pw - x * dw) // sw) for y, x in taps),
                )
            )
    return tuple(phases)


def taps_per_phase(conv: Conv) -> tuple[int, ...]:
    """Return the number of taps of each phase (one phase for an ordinary convolution)."""
    return tuple(len(p.taps) for p in _phases(conv))


def _padded(x: Tensor, conv: Conv, margin: int) -> Tensor:
    """Return ``x`` with ``margin`` pixels around it, padded as ``conv`` pads."""
    if isinstance(conv, nn.ConvTranspose2d) or conv.padding_mode == "zeros":
        return F.pad(x, (margin,) * 4)
    # Its own padding: with padding="same" and an even kernel the sides differ.
    own: list[int] = conv._reversed_padding_repeated_twice
    x = F.pad(x, own, mode=conv.padding_mode)
    # Beyond it the convolution never reads.
    return F.pad(x, [margin - side for side in own])


def moments(
    conv: Conv,
    inputs: Sequence[Tensor],
    wanted: Sequence[Tensor],
    *,
    offset: Tensor | None = None,
    project: Tensor | None = None,
    samples: int = 30_000,
    seed: int = 0,
) -> tuple[Moments, ...]:
    """Return the moments between input patches of ``conv`` and wanted outputs, phase by phase.

    Args:
        conv: its geometry is used (kernel size, stride, padding, dilation), not its weight.
        inputs: batches ``(N, I, h, w)``.
        wanted: batches ``(N, O, H, W)``.
        offset: ``(O,)``, a known bias, subtracted from the outputs first.
        project: ``(P, I)``; patches are of ``project @ x`` where it is given.
        samples: number of positions drawn for each phase.
        seed: of the draw.
    """
    phases = [p for p in _phases(conv) if p.taps]
    outs = wanted[0].shape[1]
    channels = inputs[0].shape[1] if project is None else len(project)
    zeros = wanted[0].new_zeros
    sums = [
        Moments(p.taps, zeros(n, n), zeros(n, outs), zeros(outs), zeros(n), zeros(outs))
        for p in phases
        for n in (len(p.taps) * channels,)
    ]
    counts = [0] * len(phases)
    waiting: list[list[tuple[Tensor, Tensor]]] = [[] for _ in phases]
    for i, patch, value in _patches(conv, inputs, wanted, project, samples, seed):
        waiting[i].append((patch, value if offset is None else value - offset))
        counts[i] += len(patch)
        # A product of matrices with few rows costs as much as its result's memory.
        if sum(len(p) for p, _ in waiting[i]) >= max(_ROWS, patch.shape[1]):
            _add(sums[i], waiting[i])
    for i, rest in enumerate(waiting):
        _add(sums[i], rest)
    return tuple(
        Moments(m.taps, m.xx / n, m.xy / n, m.yy / n, m.x / n, m.y / n)
        for m, n in zip(sums, counts, strict=True)
    )


def patches_of(
    conv: nn.Conv2d, inputs: Sequence[Tensor], wanted: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Return all input patches ``(S, T I)`` of ``conv`` and the wanted outputs ``(S, O)``."""
    drawn = [(x, y) for _, x, y in _patches(conv, inputs, wanted, None, None, 0)]
    return torch.cat([x for x, _ in drawn]), torch.cat([y for _, y in drawn])


def _add(sums: Moments, drawn: list[tuple[Tensor, Tensor]]) -> None:
    """Add drawn patches and outputs to ``sums`` in place, and empty the list."""
    if not drawn:
        return
    patch, value = (torch.cat(parts) for parts in zip(*drawn, strict=True))
    drawn.clear()
    sums.x.add_(patch.sum(0))
    sums.y.add_(value.sum(0))
    with all_threads(patch.numel() * patch.shape[1]):
        sums.xx.addmm_(patch.t(), patch)
        sums.xy.addmm_(patch.t(), value)
    sums.yy.add_(value.square().sum(0))


def _patches(
    conv: Conv,
    inputs: Sequence[Tensor],
    wanted: Sequence[Tensor],
    project: Tensor | None,
    samples: int | None,
    seed: int,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield the number of a phase, patches and outputs; all positions where ``samples`` is None.

    One batch after the other, so that only one projected copy is alive.
    """
    generator = torch.Generator().manual_seed(seed)
    stride = _pairs(conv.stride, conv)
    step, every = ((1, 1), stride) if isinstance(conv, nn.ConvTranspose2d) else (stride, (1, 1))
    phases = [p for p in _phases(conv) if p.taps]
    pixels = sum(y.shape[0] * y.shape[2] * y.shape[3] for y in wanted) / (every[0] * every[1])
    share = 1.0 if samples is None else min(1.0, samples / max(1.0, pixels))
    for x, y in zip(inputs, wanted, strict=True):
        view = x if project is None else torch.einsum("pi,nihw->nphw", project, x)
        for i, phase in enumerate(phases):
            target = y[:, :, phase.offset[0] :: every[0], phase.offset[1] :: every[1]]
            yield i, *_draw(conv, phase, view, target, step, share, generator)


def _draw(
    conv: Conv,
    phase: _Phase,
    x: Tensor,
    y: Tensor,
    step: tuple[int, int],
    share: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Return patches ``(S, T P)`` and outputs ``(S, O)`` at random positions of one batch."""
    n, _, height, width = y.shape
    reach = max(
        [abs(s) for shift in phase.shifts for s in shift]
        + [
            (height - 1) * step[0] + max(s[0] for s in phase.shifts) - x.shape[2] + 1,
            (width - 1) * step[1] + max(s[1] for s in phase.shifts) - x.shape[3] + 1,
        ]
    )
    margin = max(reach, *_pairs(conv.padding, conv))
    spread = _padded(x, conv, margin).permute(0, 2, 3, 1)
    cells = n * height * width
    order = torch.randperm(cells, generator=generator, device="cpu")
    pick = order[: max(1, int(cells * share))].to(x.device)
    image, rest = pick // (height * width), pick % (height * width)
    row = rest // width * step[0] + margin
    column = rest % width * step[1] + margin
    if x.device.type == "cpu":
        patch = torch.stack([spread[image, row + a, column + b] for a, b in phase.shifts], 1)
    else:
        down, right = torch.tensor(phase.shifts, device="cpu").to(x.device).unbind(1)
        patch = spread[image[:, None], row[:, None] + down, column[:, None] + right]
    return patch.flatten(1), y.permute(0, 2, 3, 1)[image, rest // width, rest % width]
