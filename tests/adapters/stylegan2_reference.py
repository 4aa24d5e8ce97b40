"""StyleGAN2 by the book, slow: per-sample kernels, zeros inserted, one tap at a time.

Shares no code with the adapter; reads its generators' tensors only.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _normal(x: Tensor) -> Tensor:
    return x / (x.pow(2).mean(1, keepdim=True) + 1e-8).sqrt()


def _fc(layer: Any, x: Tensor) -> Tensor:
    w = layer.weight * layer.bias_gain / math.sqrt(layer.weight.shape[1])
    y = x @ w.t() + layer.bias * layer.bias_gain
    return y if layer.activation == "linear" else math.sqrt(2) * torch.where(y > 0, y, 0.2 * y)


def _stuff(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    y = x.new_zeros(n, c, 2 * h, 2 * w)
    y[:, :, ::2, ::2] = x
    return y


def _fir(x: Tensor, f: Tensor, before: int, after: int, gain: float) -> Tensor:
    x = F.pad(x, (before, after, before, after))
    side = x.shape[-1] - f.shape[0] + 1
    out = x.new_zeros(*x.shape[:2], side, side)
    for i in range(f.shape[0]):
        for j in range(f.shape[1]):
            tap = f[f.shape[0] - 1 - i, f.shape[1] - 1 - j]
            out += gain * tap * x[:, :, i : i + side, j : j + side]
    return out


def _dense(conv: nn.Module) -> Tensor:
    weight: Tensor = conv.weight  # type: ignore[assignment]
    return weight.transpose(0, 1) if isinstance(conv, nn.ConvTranspose2d) else weight


def _layer(layer: Any, x: Tensor, w: Tensor, mode: str, gain: float = 1.0) -> Tensor:
    styles = _fc(layer.affine, w)
    weight = _dense(layer.demod.conv)
    outs = []
    for i in range(len(x)):
        k = weight * styles[i][None, :, None, None]
        k = k / (k.pow(2).sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if layer.up == 2:
            # A true convolution on the zero-stuffed map, then the filter, as one pipeline.
            y = F.conv2d(F.pad(_stuff(x[i : i + 1]), (2, 1, 2, 1)), k.flip(2, 3))
            outs.append(_fir(y, layer.resample_filter, 1, 1, 4.0))
        else:
            outs.append(F.conv2d(x[i : i + 1], k, padding=1))
    y = torch.cat(outs)
    if mode == "const":
        y = y + layer.noise.noise_const * layer.noise.weight
    elif mode == "random":
        side = layer.resolution
        y = y + torch.randn([len(x), 1, side, side]) * layer.noise.weight
    y = y + layer.bias[None, :, None, None]
    y = math.sqrt(2) * gain * torch.where(y > 0, y, 0.2 * y)
    if layer.conv_clamp is not None:
        y = y.clamp(-layer.conv_clamp * gain, layer.conv_clamp * gain)
    return y


def _rgb(layer: Any, x: Tensor, w: Tensor) -> Tensor:
    styles = _fc(layer.affine, w) / math.sqrt(layer.conv.weight.shape[1])
    y = torch.einsum("oi,ni,nihw->nohw", layer.conv.weight[:, :, 0, 0], styles, x)
    y = y + layer.conv.bias[None, :, None, None]
    return y if layer.conv_clamp is None else y.clamp(-layer.conv_clamp, layer.conv_clamp)


def image(
    g: Any, z: Tensor, c: Tensor, *, psi: float = 1.0, cut: int | None = None, mode: str = "const"
) -> Tensor:
    """The image of an *unconverted* generator."""
    x = _normal(z)
    if g.c_dim:
        x = torch.cat([x, _normal(_fc(g.mapping.embed, c))], 1)
    for i in range(g.mapping.num_layers):
        x = _fc(getattr(g.mapping, f"fc{i}"), x)
    ws = x[:, None].repeat(1, g.num_ws, 1)
    cut = g.num_ws if cut is None else cut
    ws[:, :cut] = g.mapping.w_avg + psi * (ws[:, :cut] - g.mapping.w_avg)
    x, img, at = g.synthesis.b4.const[None].repeat(len(z), 1, 1, 1), None, 0
    for r in g.synthesis.block_resolutions:
        b = getattr(g.synthesis, f"b{r}")
        f = b.resample_filter
        if b.in_channels:
            gain = math.sqrt(0.5) if b.architecture == "resnet" else 1.0
            if b.architecture == "resnet":
                skip = torch.einsum("oi,nihw->nohw", b.skip.conv.weight[:, :, 0, 0], x)
                skip = skip * gain / math.sqrt(x.shape[1])
                skip = _fir(_stuff(skip), f, 2, 1, 4.0)
            x = _layer(b.conv0, x, ws[:, at], mode)
            x = _layer(b.conv1, x, ws[:, at + 1], mode, gain)
            if b.architecture == "resnet":
                x = x + skip
            at += 2
        else:
            x = _layer(b.conv1, x, ws[:, at], mode)
            at += 1
        if img is not None:
            img = _fir(_stuff(img), f, 2, 1, 4.0)
        if b.architecture == "skip" or b.is_last:
            y = _rgb(b.torgb, x, ws[:, at])
            img = y if img is None else img + y
    return img
