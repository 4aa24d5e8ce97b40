"""A modulated convolution whose kernel is a module: the form in which it can be separable.

The original computes with a parameter ``weight`` (1, O, I, k, k). Here the kernel is a child, an
``nn.Conv2d`` (``nn.ConvTranspose2d`` where the layer upsamples), which a converter may replace by a
pair ``pointwise``, ``depthwise`` in either order. The state dict has the original's names and
shapes, except for kernels that are pairs.

This file imports nothing but torch. Copied into a checkout of rosinality/stylegan2-pytorch,
together with ``restructure.py``, it lets the original's ``Generator`` take converted weights::

    entry = torch.load("fast.pt", weights_only=True)
    generator = adopt(Generator(256, 512, 8))
    restructure(generator, entry["dsconvert"]["recipes"]["g_ema"])
    generator.load_state_dict(entry["g_ema"])

Equations: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (2020), section
2.2: ``y = d * (W (s * x))``, with the styles ``s`` and the demodulation ``d``.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MERGED_RANK = 2
"""Up to this rank a depthwise kernel and the low-pass filter behind it are cheaper as one."""


def kernel_energy(conv: nn.Module) -> Tensor:
    """Return ``sum_k W[o, i, k]^2`` (O, I) of a convolution or separable pair.

    For a pair the sum over taps goes through the Gram matrices of its filters, which is exact:
    ``sum_rs P[r] P[s] <D[r], D[s]>`` for pointwise P and depthwise D.
    """
    inside: Any = conv
    if not isinstance(conv, nn.Sequential):
        energy = inside.weight.square().sum((2, 3))
        return energy.t() if isinstance(conv, nn.ConvTranspose2d) else energy
    mix, filters = inside.pointwise.weight.flatten(1), inside.depthwise.weight
    outwards = next(iter(inside._modules)) == "pointwise"
    groups = inside.depthwise.out_channels if outwards else inside.depthwise.in_channels
    filters = filters.reshape(groups, -1, filters.shape[-1] * filters.shape[-2])
    gram = torch.bmm(filters, filters.transpose(1, 2))
    if outwards:
        mix = mix.reshape(groups, gram.shape[1], -1)
        return (torch.bmm(gram, mix) * mix).sum(1)
    mix = mix.reshape(-1, groups, gram.shape[1]).transpose(0, 1)
    return (torch.bmm(mix, gram) * mix).sum(2).t()


def kernel_channels(conv: Any) -> tuple[int, int]:
    """Return the numbers of inputs and outputs of a convolution or separable pair."""
    parts = list(conv.children()) or [conv]
    # By vars: a converter that watches who reads a kernel's attributes need not mind this.
    return int(vars(parts[0])["in_channels"]), int(vars(parts[-1])["out_channels"])


class Demodulation(nn.Module):
    """Owns a kernel, and says how its outputs are scaled back to unit variance.

    ``gain`` (O,) is None, which stands for ones, until a converter fits it: a fitted kernel need
    not have the energy of the original one.

    For a converter that removes channels: the factors belong to the channels of the second argument
    (``channels_of``), and :meth:`narrow` removes them from the module's own tensors.
    """

    channels_of: ClassVar[int] = 1
    gain: Any

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.register_buffer("gain", None)

    def forward(self, styles: Tensor, y: Any = None) -> Tensor:  # noqa: ARG002
        """Return factors (N, O) for styles (N, I).

        ``y``, the result of the kernel, is not needed here; :meth:`follow` looks at it.
        """
        energy = styles.square() @ kernel_energy(self.conv).t()
        factors = torch.rsqrt(energy + 1e-8)
        return factors if self.gain is None else factors * self.gain

    def narrow(self, kept: Tensor) -> None:
        """Keep the outputs ``kept``, once the kernel has no others."""
        if self.gain is not None:
            self.gain = self.gain[kept.to(self.gain.device)].clone()

    @torch.no_grad()
    def follow(self, student: Any, teacher: Any, wanted: Any) -> None:
        """Fit ``gain`` so that scaled outputs are nearest to the original's, channel by channel.

        Args:
            student: per batch, the arguments of this module's call (styles, y).
            teacher: per batch, those of the original's.
            wanted: per batch, the original's result.

        The first batch is held out: the gain changes only if that batch's error falls.
        """

        def pairs(i: int) -> tuple[Tensor, Tensor]:
            ours = student[i][1] * self.forward(*student[i])[:, :, None, None]
            return ours, teacher[i][1] * wanted[i][:, :, None, None]

        top: Any = 0.0
        bottom: Any = 0.0
        for i in range(1, len(wanted)):
            ours, theirs = pairs(i)
            top = top + (ours * theirs).sum((0, 2, 3))
            bottom = bottom + ours.square().sum((0, 2, 3))
        if not isinstance(bottom, Tensor):
            return
        factor = torch.where(bottom > 0, top / bottom.clamp_min(1e-30), torch.ones_like(top))
        ours, theirs = pairs(0)
        before = (ours - theirs).square().sum()
        after = (ours * factor[None, :, None, None] - theirs).square().sum()
        if bool(after < before):
            self.gain = factor if self.gain is None else self.gain * factor


class Blur(nn.Module):
    """The low-pass filter ``kernel`` (L, L) on every channel, behind zeros as in ``pad``."""

    kernel: Tensor

    def __init__(self, kernel: Tensor, pad: tuple[int, int]) -> None:
        super().__init__()
        self.register_buffer("kernel", kernel)
        self.pad = (int(pad[0]), int(pad[1]))

    def forward(self, x: Tensor, channels: int) -> Tensor:
        """(N, C, H, W) to (N, C, H', W'), with ``channels`` C as a plain number."""
        taps = self._buffers["kernel"].shape[-1]  # type: ignore[union-attr]
        kernel = self.kernel.flip(0, 1).expand(channels, 1, taps, taps)
        first, last = self.pad
        if first == last:
            return F.conv2d(x, kernel, padding=first, groups=channels)
        return F.conv2d(F.pad(x, (first, last, first, last)), kernel, groups=channels)


class ModulatedConv2d(nn.Module):
    """Scale the inputs by styles, convolve, scale the outputs to unit variance.

    Args:
        weight: the kernel (1, O, I, k, k), as the original stores it.
        modulation: styles (N, I) of latents (N, W).
        demodulate: whether the outputs are scaled.
        blur: the filter behind a kernel that upsamples; None: it keeps the size.
    """

    scale: float
    """Of the equalised learning rate: by the number of inputs that the layer was trained with."""

    def __init__(
        self, weight: Tensor, modulation: nn.Module, *, demodulate: bool = True, blur: Any = None
    ) -> None:
        super().__init__()
        _, outs, inp, size, _ = weight.shape
        self.scale = (inp * size * size) ** -0.5
        if blur is not None:
            self.blur = blur
        self.modulation = modulation
        options: Any = {"bias": False, "device": "meta"}
        conv: Any = (
            nn.Conv2d(inp, outs, size, padding=size // 2, **options)
            if blur is None
            else nn.ConvTranspose2d(inp, outs, size, stride=2, **options)
        )
        kernel = _turned(conv, weight.detach()[0])
        conv.weight = nn.Parameter(kernel, requires_grad=weight.requires_grad)
        if demodulate:
            self.demod = Demodulation(conv)
        else:
            self.kernel = conv

    @property
    def _place(self) -> str:
        """The name of the kernel."""
        return "demod.conv" if "demod" in self._modules else "kernel"

    def forward(self, input: Tensor, style: Tensor) -> Tensor:  # noqa: A002 (the original's name)
        """(N, I, H, W) and latents (N, W) to (N, O, H', W')."""
        styles = self.modulation(style) * self.scale
        if "kernel" in self._modules:
            return self.kernel(input * styles[:, :, None, None])
        conv = self.demod.conv
        if type(input) is Tensor and not input.is_meta and isinstance(conv, nn.Sequential):
            return self._pair(input, styles)
        y = conv(input * styles[:, :, None, None])
        if "blur" in self._modules:
            y = self.blur(y, kernel_channels(conv)[1])
        return y * self.demod(styles, y)[:, :, None, None]

    def _pair(self, x: Tensor, styles: Tensor) -> Tensor:
        """Put styles and demodulation into the factors of a separable pair.

        Both factors are linear in each channel, so this is exact, and spares two passes over the
        maps.
        """
        pair: Any = self.demod.conv
        scale = self.demod(styles)
        n, inp = x.shape[:2]
        point, filters = pair.pointwise.weight.flatten(1), pair.depthwise.weight
        if next(iter(pair._modules)) == "depthwise":
            taps = filters.reshape(1, inp, -1) * styles[:, :, None]
            y = self._spatial(x.reshape(1, n * inp, *x.shape[2:]), taps, filters.shape, n * inp)
            y = y.reshape(n, point.shape[1], *y.shape[2:])
            return _mixed(y, point * scale[:, :, None])
        outs = scale.shape[1]
        y = _mixed(x, point * styles[:, None, :])
        taps = filters.reshape(1, outs, -1) * scale[:, :, None]
        y = y.reshape(1, n * point.shape[0], *y.shape[2:])
        y = self._spatial(y, taps, filters.shape, n * outs)
        return y.reshape(n, outs, *y.shape[2:])

    def _spatial(self, x: Tensor, filters: Tensor, shape: Any, groups: int) -> Tensor:
        """Apply the depthwise factor to the maps (1, N C, H, W) of all samples, then the filter."""
        filters = filters.reshape(-1, *shape[1:])
        if "blur" not in self._modules:
            return F.conv2d(x, filters, padding=int(shape[-1]) // 2, groups=groups)
        blur: Any = self.blur
        first, last = blur.pad
        if len(filters) > _MERGED_RANK * groups or first != last:
            y = F.conv_transpose2d(x, filters, stride=2, groups=groups)
            return blur(y, y.shape[1])
        # Both are linear and act on single channels: one kernel, their full convolution.
        size = int(blur.kernel.shape[-1])
        flat = filters.reshape(-1, 1, *shape[2:])
        merged = F.conv2d(flat, blur.kernel.flip(0, 1)[None, None], padding=size - 1)
        merged = merged.reshape(len(filters), -1, *merged.shape[2:])
        return F.conv_transpose2d(x, merged, stride=2, padding=size - 1 - first, groups=groups)

    # The state dict has the original's names: a dense kernel is ``weight`` (1, O, I, k, k). With
    # ``keep_vars`` it holds the parameters themselves under their own names, as torch.jit needs it.

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """Return the state dict."""
        made = super().state_dict(*args, **options)
        if not options.get("keep_vars", False):
            made.pop(f"{options.get('prefix', '')}{self._place}.weight", None)
        return made

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        conv: Any = self.get_submodule(self._place)
        if not keep_vars and not isinstance(conv, nn.Sequential):
            destination[f"{prefix}weight"] = _turned(conv, conv.weight.detach())[None]

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **rest: Any) -> None:
        conv = self.get_submodule(self._place)
        weight = state_dict.get(f"{prefix}weight")
        if not isinstance(conv, nn.Sequential) and weight is not None and weight.ndim == 5:
            del state_dict[f"{prefix}weight"]
            state_dict[f"{prefix}{self._place}.weight"] = _turned(conv, weight[0])
        if "demod" in self._modules:
            gain = state_dict.get(f"{prefix}demod.gain")
            self.demod.gain = None if gain is None else torch.empty_like(gain)
        super()._load_from_state_dict(state_dict, prefix, *args, **rest)


def _turned(conv: nn.Module, weight: Tensor) -> Tensor:
    """Return a kernel (O, I, k, k) in the order of ``conv``, or back."""
    return weight.transpose(0, 1) if isinstance(conv, nn.ConvTranspose2d) else weight


def _mixed(x: Tensor, weights: Tensor) -> Tensor:
    """Mix channels by weights (N, O, I) of each sample: (N, I, H, W) to (N, O, H, W)."""
    y = torch.bmm(weights, x.flatten(2))
    return y.reshape(x.shape[0], weights.shape[1], *x.shape[2:])


def adopt(generator: nn.Module) -> nn.Module:
    """Give each modulated convolution of the original's ``Generator`` a kernel of its own.

    Args:
        generator: of rosinality/stylegan2-pytorch; changed in place.

    Returns:
        ``generator``; it computes as before.

    Raises:
        ValueError: it holds a modulated convolution that downsamples.
    """
    for name, module in list(generator.named_modules()):
        if type(module).__name__ != "ModulatedConv2d" or isinstance(module, ModulatedConv2d):
            continue
        theirs: Any = module
        if theirs.downsample:
            raise ValueError(f"{name} downsamples, which no generator does")
        blur = Blur(theirs.blur.kernel, theirs.blur.pad) if theirs.upsample else None
        made = ModulatedConv2d(
            theirs.weight, theirs.modulation, demodulate=theirs.demodulate, blur=blur
        )
        parent = generator.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], made.train(module.training))
    return generator
