"""StyleGAN3's generator in plain PyTorch, dense or separable: the text that output files carry.

Written afresh after Karras et al., "Alias-Free Generative Adversarial Networks" (2021), with the
class names of NVIDIA's and StyleGAN-XL's files. Files of the ``torch_utils.persistence`` kind bring
the source of their classes along; dsconvert writes *this module's* text there. So it is one file,
imports nothing but torch and the standard library, and keeps to the Python 3.8 and torch 1.9 of
those codebases.

A modulated convolution is ``y = d * (W (s * x))``: the styles ``s`` scale the input channels, one
kernel serves all samples, and ``d`` gives each output unit variance again. The kernel is a child
module ``demod.conv``, a plain ``nn.Conv2d``, which a converter may replace by a pair ``pointwise``,
``depthwise`` in either order; ``d`` is computed from whatever kernel stands there, so it is exact
for the pair too. The non-linearity is applied at a higher sampling rate, between two low-pass
filters (section 3.2): of Kaiser's window, or radially symmetric ones (appendix C.1).
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ROOT2 = math.sqrt(2.0)
_NUMBER = (int, float)
_MAYBE = (int, float, type(None))


def _unit(x: Tensor) -> Tensor:
    """``x`` (N, C) with mean square one."""
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


def _free(x: Any) -> bool:
    """Whether a fresh tensor may be changed in place: nothing records it."""
    return type(x) is Tensor and not torch.is_grad_enabled()


def kaiser_filter(taps: int, cutoff: float, width: float, rate: float) -> Tensor:
    """A separable low-pass filter (taps,) of sum one, by Kaiser's window (equations 4 to 6).

    Args:
        taps: its length.
        cutoff: f_c, in cycles a unit.
        width: of the transition band, 2 f_h.
        rate: the sampling rate.
    """
    at = torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2
    made = torch.sinc(at * (2 * cutoff / rate)) * _kaiser_window(taps, width, rate)
    return (made / made.sum()).to(torch.float32)


def jinc_filter(taps: int, cutoff: float, width: float, rate: float) -> Tensor:
    """A radially symmetric low-pass filter (taps, taps) of sum one; ``taps`` is even."""
    at = (torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2) / rate
    radius = torch.sqrt(at[:, None].square() + at[None, :].square())
    window = _kaiser_window(taps, width, rate)
    made = _bessel_j1(2 * math.pi * cutoff * radius) / (math.pi * radius)
    made = made * torch.outer(window, window)
    return (made / made.sum()).to(torch.float32)


def _kaiser_window(taps: int, width: float, rate: float) -> Tensor:
    """Kaiser's window for a transition band, by his formulas of 1974."""
    attenuation = 2.285 * (taps - 1) * math.pi * width / (rate / 2) + 7.95
    beta = 0.0
    if attenuation > 50:
        beta = 0.1102 * (attenuation - 8.7)
    elif attenuation > 21:
        beta = 0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21)
    return torch.kaiser_window(taps, periodic=False, beta=beta, dtype=torch.float64)


def _bessel_j1(x: Tensor) -> Tensor:
    """Bessel's function of the first kind and order one, by its integral (exact for x < 100)."""
    steps = 256
    angles = (torch.arange(steps, dtype=x.dtype) + 0.5) * (math.pi / steps)
    return torch.cos(angles - x[..., None] * torch.sin(angles)).mean(-1)


def kernel_energy(conv: nn.Module) -> Tensor:
    """``sum_k W[o, i, k]^2`` (O, I) of the effective kernel of a convolution or separable pair.

    For a pair the sum over taps goes through the Gram matrices of its filters, which is exact:
    ``sum_rs P[r] P[s] <D[r], D[s]>`` for pointwise P and depthwise D.
    """
    inside: Any = conv
    if not isinstance(conv, nn.Sequential):
        return inside.weight.square().sum((2, 3))
    mix = inside.pointwise.weight.flatten(1)
    filters = inside.depthwise.weight
    taps = filters.shape[-1] * filters.shape[-2]
    if next(iter(inside._modules)) == "pointwise":
        outs = inside.depthwise.out_channels
        filters = filters.reshape(outs, -1, taps)
        mix = mix.reshape(outs, filters.shape[1], -1)
        gram = torch.bmm(filters, filters.transpose(1, 2))
        return (torch.bmm(gram, mix) * mix).sum(1)
    inp = inside.depthwise.in_channels
    filters = filters.reshape(inp, -1, taps)
    mix = mix.reshape(-1, inp, filters.shape[1]).transpose(0, 1)
    gram = torch.bmm(filters, filters.transpose(1, 2))
    return (torch.bmm(mix, gram) * mix).sum(2).t()


def kernel_channels(conv: Any) -> Any:
    """The numbers of inputs and outputs of a convolution or separable pair."""
    parts = list(conv.children()) or [conv]
    # By vars: a converter that watches who reads a kernel's attributes need not mind this.
    return vars(parts[0])["in_channels"], vars(parts[-1])["out_channels"]


def kernel_of(weight: nn.Parameter, bias: Any = None) -> nn.Conv2d:
    """A convolution around ``weight`` (O, I, k, k); every tap that meets the map counts."""
    size = int(weight.shape[-1])
    conv = nn.Conv2d(1, 1, size, padding=size - 1, bias=bias is not None)
    conv.weight, conv.bias = weight, bias
    conv.out_channels, conv.in_channels = weight.shape[:2]
    return conv


class FullyConnectedLayer(nn.Module):
    """Linear layer with equalised learning rate: the stored weight is scaled when it is used."""

    FIELDS: ClassVar[Any] = {"activation": str, "bias_gain": _NUMBER}

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: str = "linear",
        lr_multiplier: float = 1.0,
        weight_init: float = 1.0,
        bias_init: Any = 0.0,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.activation, self.bias_gain = activation, lr_multiplier
        weight = torch.randn(out_features, in_features) * (weight_init / lr_multiplier)
        self.weight = nn.Parameter(weight)
        bias = torch.as_tensor(bias_init, dtype=torch.float32) / lr_multiplier
        self.bias = nn.Parameter(bias.expand(out_features).clone())

    def forward(self, x: Tensor) -> Tensor:
        """(N, I) to (N, O)."""
        weight = self.weight * (self.bias_gain / math.sqrt(self.in_features))
        own: Any = self.bias
        bias = None if own is None else own * self.bias_gain
        y = F.linear(x, weight, bias)
        return F.leaky_relu(y, 0.2) * _ROOT2 if self.activation == "lrelu" else y


class MappingNetwork(nn.Module):
    """Latents z (N, Z) and classes c (N, C) to intermediate latents (N, num_ws, W).

    StyleGAN-XL's has ``embed``, a table of features for each class, ``embed_proj`` behind it, and a
    mean of w for each class.
    """

    FIELDS: ClassVar[Any] = {
        "z_dim": int,
        "c_dim": int,
        "w_dim": int,
        "num_ws": int,
        "num_layers": int,
    }
    OPTIONS: ClassVar[Any] = {"w_avg_beta": _MAYBE}
    w_avg: Tensor

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        num_ws: int,
        num_layers: int = 2,
        lr_multiplier: float = 0.01,
        w_avg_beta: float = 0.998,
    ) -> None:
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim = z_dim, c_dim, w_dim
        self.num_ws, self.num_layers, self.w_avg_beta = num_ws, num_layers, w_avg_beta
        if c_dim:
            self.embed = FullyConnectedLayer(c_dim, w_dim)
        before = z_dim + (w_dim if c_dim else 0)
        for i in range(num_layers):
            layer = FullyConnectedLayer(before, w_dim, "lrelu", lr_multiplier)
            setattr(self, f"fc{i}", layer)
            before = w_dim
        self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(
        self,
        z: Tensor,
        c: Any,
        truncation_psi: float = 1.0,
        truncation_cutoff: Any = None,
        update_emas: bool = False,
    ) -> Tensor:
        """Map, broadcast to all layers, and pull the first ``truncation_cutoff`` towards the mean.

        The mean of w is moved where ``update_emas`` asks for it.
        """
        x, by_class = _unit(z.to(torch.float32)), "embed_proj" in self._modules
        if self.c_dim:
            inside: Any = self
            y = inside.embed_proj(self.embed(c.argmax(1))) if by_class else self.embed(c.float())
            x = torch.cat([x, _unit(y)], 1)
        for i in range(self.num_layers):
            x = getattr(self, f"fc{i}")(x)
        if update_emas:
            self._track(x.detach(), c.argmax(1).tolist() if by_class else None)
        ws = x.unsqueeze(1).repeat(1, self.num_ws, 1)
        if truncation_psi != 1:
            mean = self.w_avg[c.argmax(1)].unsqueeze(1) if by_class else self.w_avg
            pulled = mean + truncation_psi * (ws - mean)
            cut = self.num_ws if truncation_cutoff is None else truncation_cutoff
            ws = torch.cat([pulled[:, :cut], ws[:, cut:]], 1)
        return ws

    @torch.no_grad()
    def _track(self, x: Tensor, labels: Any) -> None:
        if labels is None:
            self.w_avg.copy_(x.mean(0).lerp(self.w_avg, self.w_avg_beta))
            return
        for i, label in enumerate(labels):
            self.w_avg[label].copy_(x[i].lerp(self.w_avg[label], self.w_avg_beta))


class SynthesisInput(nn.Module):
    """Fourier features of a grid that the latent turns and moves, mixed by a 1x1 convolution.

    ``transform`` (3, 3) is a user's inverse transform of the image; ``size`` is the width and
    height of the map, margins included; ``scale`` is the equalised learning rate's.
    """

    FIELDS: ClassVar[Any] = {"sampling_rate": _NUMBER, "bandwidth": _NUMBER}
    OPTIONS: ClassVar[Any] = {"side": _MAYBE, "scale": _MAYBE}
    transform: Tensor
    freqs: Tensor
    phases: Tensor

    def __init__(
        self, w_dim: int, channels: int, size: int, sampling_rate: float, bandwidth: float
    ) -> None:
        super().__init__()
        self.side, self.sampling_rate, self.bandwidth = size, sampling_rate, bandwidth
        # Frequencies inside of a disc, with the density of the original's draws.
        freqs = torch.randn(channels, 2)
        radii = freqs.norm(dim=1, keepdim=True)
        freqs = freqs * (bandwidth / (radii * torch.exp(radii.square() / 4)))
        self.scale = 1 / math.sqrt(channels)
        self.affine = FullyConnectedLayer(w_dim, 4, weight_init=0, bias_init=[1.0, 0, 0, 0])
        self.register_buffer("transform", torch.eye(3))
        self.register_buffer("freqs", freqs)
        self.register_buffer("phases", torch.rand(channels) - 0.5)
        self.conv = kernel_of(nn.Parameter(torch.randn(channels, channels, 1, 1)))

    @property
    def channels(self) -> int:
        """The number of maps."""
        return int(kernel_channels(self.conv)[1])

    def forward(self, w: Tensor) -> Tensor:
        """Latents (N, W) to maps (N, C, S, S)."""
        t = self.affine(w)
        t = t / t[:, :2].norm(dim=1, keepdim=True)
        cos, sin = t[:, 0].reshape(-1, 1, 1), t[:, 1].reshape(-1, 1, 1)
        # Turned, then moved, then the user's transform: the upper two rows of their product.
        moved = self.transform[:2] - t[:, 2:].unsqueeze(2) * self.transform[2]
        top, low = moved[:, :1], moved[:, 1:]
        turned = torch.cat([cos * top - sin * low, sin * top + cos * low], 1)
        along = torch.matmul(self.freqs, turned)  # (N, C, 3): frequencies x and y, phase
        fx, fy = along[:, :, 0], along[:, :, 1]
        radius = torch.sqrt(fx * fx + fy * fy)
        beyond = (radius - self.bandwidth) / (self.sampling_rate / 2 - self.bandwidth)
        amplitude = (1 - beyond).clamp(0, 1)
        at = (torch.arange(self.side, device=w.device) - (self.side - 1) / 2) / self.sampling_rate
        across = fx.unsqueeze(2) * at + (along[:, :, 2] + self.phases).unsqueeze(2)
        down = fy.unsqueeze(2) * at
        waves = torch.sin((across.unsqueeze(2) + down.unsqueeze(3)) * (2 * math.pi))
        return self.conv(waves * (amplitude * self.scale).unsqueeze(2).unsqueeze(3))


class Demodulation(nn.Module):
    """Owns a kernel, and says how its outputs are scaled back to unit variance.

    ``gain`` (O,) is one until a converter fits it: a fitted kernel need not have the energy of the
    original one.

    For a converter that removes channels: the factors belong to the channels of the second argument
    (``channels_of``), and :meth:`narrow` removes them from the module's own tensors.
    """

    channels_of: ClassVar[int] = 1
    gain: Tensor

    def __init__(self, conv: nn.Module, outputs: int) -> None:
        super().__init__()
        self.conv = conv
        self.register_buffer("gain", torch.ones(outputs))

    def forward(self, styles: Tensor, y: Any = None) -> Tensor:  # noqa: ARG002
        """Factors (N, O) for styles (N, I).

        ``y``, the result of the kernel, is not needed here; a converter that fits ``gain`` looks at
        it (:meth:`follow`). Scales of kernel and styles cancel.
        """
        energy = styles.square() @ kernel_energy(self.conv).t()
        return torch.rsqrt(energy.clamp_min(1e-30)) * self.gain

    def narrow(self, kept: Tensor) -> None:
        """Keep the outputs ``kept``, once the kernel has no others."""
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

        def pairs(i: int) -> Any:
            ours = student[i][1] * self.forward(*student[i])[:, :, None, None]
            return ours, teacher[i][1] * wanted[i][:, :, None, None]

        top = bottom = torch.zeros_like(self.gain)
        for i in range(1, len(wanted)):
            ours, theirs = pairs(i)
            top = top + (ours * theirs).sum((0, 2, 3))
            bottom = bottom + ours.square().sum((0, 2, 3))
        factor = torch.where(bottom > 0, top / bottom.clamp_min(1e-30), torch.ones_like(top))
        ours, theirs = pairs(0)
        before = (ours - theirs).square().sum()
        after = (ours * factor[None, :, None, None] - theirs).square().sum()
        if bool(after < before):
            self.gain.mul_(factor)


class SynthesisLayer(nn.Module):
    """Modulated convolution and filtered leaky ReLU; the last one makes the image.

    ``padding`` is (left, right, top, bottom), on the grid of ``up_factor`` times the rate; negative
    numbers crop. ``scale`` is the equalised learning rate's, of the layer that makes the image: one
    over the root of the number of inputs that it was trained with. The input is divided by the root
    of ``magnitude_ema``, its mean square in training.
    """

    FIELDS: ClassVar[Any] = {
        "is_torgb": bool,
        "up_factor": int,
        "down_factor": int,
        "padding": list,
        "magnitude_ema_beta": _NUMBER,
    }
    OPTIONS: ClassVar[Any] = {"conv_clamp": _MAYBE, "scale": _MAYBE}
    magnitude_ema: Tensor

    def __init__(
        self,
        w_dim: int,
        is_torgb: bool,
        is_critically_sampled: bool,
        in_channels: int,
        out_channels: int,
        in_size: int,
        out_size: int,
        in_sampling_rate: int,
        out_sampling_rate: int,
        in_cutoff: float,
        out_cutoff: float,
        in_half_width: float,
        out_half_width: float,
        conv_kernel: int = 3,
        filter_size: int = 6,
        lrelu_upsampling: int = 2,
        use_radial_filters: bool = False,
        conv_clamp: Any = 256,
        magnitude_ema_beta: float = 0.999,
    ) -> None:
        super().__init__()
        self.is_torgb, self.conv_clamp = is_torgb, conv_clamp
        self.magnitude_ema_beta = magnitude_ema_beta
        rate = max(in_sampling_rate, out_sampling_rate) * (1 if is_torgb else lrelu_upsampling)
        self.up_factor, self.down_factor = rate // in_sampling_rate, rate // out_sampling_rate
        up, down = (1 if is_torgb else filter_size * f for f in (self.up_factor, self.down_factor))
        up = up if self.up_factor > 1 else 1
        down = down if self.down_factor > 1 else 1
        size = 1 if is_torgb else conv_kernel
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1.0)
        weight = nn.Parameter(torch.randn(out_channels, in_channels, size, size))
        self.register_buffer("magnitude_ema", torch.ones([]))
        make = jinc_filter if use_radial_filters and not is_critically_sampled else kaiser_filter
        before = kaiser_filter(up, in_cutoff, 2 * in_half_width, rate) if up > 1 else None
        behind = make(down, out_cutoff, 2 * out_half_width, rate) if down > 1 else None
        self.register_buffer("up_filter", before)
        self.register_buffer("down_filter", behind)
        total = (out_size - 1) * self.down_factor + 1 - (in_size + size - 1) * self.up_factor
        total += up + down - 2
        low = (total + self.up_factor) // 2
        self.padding = [low, total - low, low, total - low]
        self.grow(weight, nn.Parameter(torch.zeros(out_channels)))

    def grow(self, weight: nn.Parameter, bias: nn.Parameter) -> None:
        """Make the children around a dense kernel ``weight`` (O, I, k, k) and ``bias`` (O,)."""
        if self.is_torgb:
            self.scale = 1 / math.sqrt(weight[0].numel())
            self.conv = kernel_of(weight, bias)
            return
        self.scale: Any = None
        self.demod = Demodulation(kernel_of(weight), len(weight))
        self.demod.gain = weight.new_ones(len(weight))
        self.bias = bias

    @property
    def kernel(self) -> Any:
        """The convolution, or the pair in its place."""
        return self.conv if self.is_torgb else self.demod.conv

    # Not stored: a converter may remove channels.
    @property
    def in_channels(self) -> int:
        """The kernel's inputs."""
        return int(kernel_channels(self.kernel)[0])

    @property
    def out_channels(self) -> int:
        """The kernel's outputs."""
        return int(kernel_channels(self.kernel)[1])

    def forward(
        self,
        x: Tensor,
        w: Tensor,
        noise_mode: str = "random",  # noqa: ARG002 - as the official code calls it
        force_fp32: bool = True,  # noqa: ARG002
        update_emas: bool = False,
    ) -> Tensor:
        """(N, I, S, S) and latents (N, W) to (N, O, S', S')."""
        if update_emas:
            now = x.detach().to(torch.float32).square().mean()
            self.magnitude_ema.copy_(now.lerp(self.magnitude_ema, self.magnitude_ema_beta))
        gain = torch.rsqrt(self.magnitude_ema)
        styles = self.affine(w)
        if self.is_torgb:
            y = self.conv(x * (styles * (gain * self.scale))[:, :, None, None])
            return self._filtered(y)
        y = self.demod.conv(x * styles[:, :, None, None])
        # The gain of the leaky ReLU, too: it is positive, so that it may come first.
        scale = (self.demod(styles, y) * (gain * _ROOT2))[:, :, None, None]
        y = y.mul_(scale) if _free(y) else y * scale
        bias = (self.bias * _ROOT2)[:, None, None]
        return self._filtered(y.add_(bias) if _free(y) else y + bias)

    def _filtered(self, y: Tensor) -> Tensor:
        """Upsample, apply the non-linearity, and downsample."""
        channels = self.out_channels
        y = _upsampled(y, self.up_filter, self.up_factor, self.padding, channels)
        if not self.is_torgb:
            y = F.leaky_relu_(y, 0.2) if _free(y) else F.leaky_relu(y, 0.2)
        if self.conv_clamp is not None:
            limit = self.conv_clamp
            y = y.clamp_(-limit, limit) if _free(y) else y.clamp(-limit, limit)
        return _downsampled(y, self.down_filter, self.down_factor, channels)


def _upsampled(y: Tensor, fir: Any, up: int, padding: Any, channels: int) -> Tensor:
    """Insert zeros, pad or crop, and filter: (N, C, H, W) to (N, C, H', W')."""
    # A transposed convolution gives every sample that is not zero; the padding says which ones are
    # wanted. It crops equally on all sides by itself.
    size = 1 if fir is None else int(fir.shape[0])
    extra = [p - size + (1 if i % 2 == 0 else up) for i, p in enumerate(padding)]
    if up > 1:
        crop = max(0, min(-e for e in extra))
        extra = [e + crop for e in extra]
        kernel = torch.ones(1, device=y.device) if fir is None else fir * up
        wide = kernel.expand(channels, 1, 1, size)
        y = F.conv_transpose2d(y, wide, stride=(1, up), padding=(0, crop), groups=channels)
        tall = kernel.unsqueeze(1).expand(channels, 1, size, 1)
        y = F.conv_transpose2d(y, tall, stride=(up, 1), padding=(crop, 0), groups=channels)
    return F.pad(y, extra) if any(extra) else y


def _downsampled(y: Tensor, fir: Any, down: int, channels: int) -> Tensor:
    """Filter, and keep every ``down``-th sample."""
    if fir is None:
        return y if down == 1 else y[:, :, ::down, ::down]
    size = int(fir.shape[0])
    if fir.dim() == 2:
        kernel = fir.flip(0, 1).expand(channels, 1, size, size)
        return F.conv2d(y, kernel, stride=down, groups=channels)
    kernel = fir.flip(0)
    y = F.conv2d(y, kernel.expand(channels, 1, 1, size), stride=(1, down), groups=channels)
    tall = kernel.unsqueeze(1).expand(channels, 1, size, 1)
    return F.conv2d(y, tall, stride=(down, 1), groups=channels)


class SynthesisNetwork(nn.Module):
    """Intermediate latents (N, num_ws, W) to images (N, C, R, R)."""

    FIELDS: ClassVar[Any] = {
        "w_dim": int,
        "img_resolution": int,
        "img_channels": int,
        "output_scale": _NUMBER,
    }

    def __init__(
        self,
        w_dim: int,
        img_resolution: int,
        img_channels: int,
        channel_base: int = 32768,
        channel_max: int = 512,
        num_layers: int = 14,
        num_critical: int = 2,
        first_cutoff: float = 2,
        first_stopband: float = 2**2.1,
        last_stopband_rel: float = 2**0.3,
        margin_size: int = 10,
        output_scale: float = 0.25,
        **layers: Any,
    ) -> None:
        super().__init__()
        self.w_dim, self.img_resolution, self.img_channels = w_dim, img_resolution, img_channels
        self.output_scale = output_scale
        # Geometric progressions of cutoffs and stopbands (section 3.2, "Flexible layer
        # specifications").
        last = img_resolution / 2
        shares = [min(i / (num_layers - num_critical), 1.0) for i in range(num_layers + 1)]
        cutoffs = [first_cutoff * (last / first_cutoff) ** s for s in shares]
        stops = [first_stopband * (last * last_stopband_rel / first_stopband) ** s for s in shares]
        rates = [2 ** math.ceil(math.log2(min(2 * f, img_resolution))) for f in stops]
        halves = [max(f, rates[i] / 2) - cutoffs[i] for i, f in enumerate(stops)]
        sizes = [r + 2 * margin_size for r in rates]
        sizes[-2:] = [img_resolution] * 2
        widths = [round(min(channel_base / 2 / c, channel_max)) for c in cutoffs]
        widths[-1] = img_channels
        self.input = SynthesisInput(w_dim, widths[0], sizes[0], rates[0], cutoffs[0])
        for i in range(num_layers + 1):
            p = max(i - 1, 0)
            layer = SynthesisLayer(
                w_dim, i == num_layers, i >= num_layers - num_critical, widths[p], widths[i],
                sizes[p], sizes[i], rates[p], rates[i], cutoffs[p], cutoffs[i],
                halves[p], halves[i], **layers,
            )  # fmt: skip
            setattr(self, f"L{i}_{sizes[i]}_{widths[i]}", layer)
        self.count()

    def count(self) -> None:
        """The layers' names, and how many latents there are: one a layer, and the input's."""
        self.layer_names = [name for name in self._modules if name != "input"]
        self.num_ws = len(self.layer_names) + 1

    def forward(
        self,
        ws: Tensor,
        noise_mode: str = "random",  # noqa: ARG002 - as the official code calls it
        force_fp32: bool = True,  # noqa: ARG002
        update_emas: bool = False,
    ) -> Tensor:
        """Synthesise. All layers compute in float32; there is no noise."""
        ws = ws.to(torch.float32)
        x = self.input(ws[:, 0])
        for i, name in enumerate(self.layer_names):
            x = getattr(self, name)(x, ws[:, i + 1], update_emas=update_emas)
        return x if self.output_scale == 1 else x * self.output_scale


class Generator(nn.Module):
    """The whole generator: latents z (N, Z) and one-hot classes c (N, C) to images in [-1, 1]."""

    FIELDS: ClassVar[Any] = {
        "z_dim": int,
        "c_dim": int,
        "w_dim": int,
        "img_resolution": int,
        "img_channels": int,
    }

    def __init__(
        self,
        z_dim: int = 512,
        c_dim: int = 0,
        w_dim: int = 512,
        img_resolution: int = 256,
        img_channels: int = 3,
        mapping_kwargs: Any = None,
        **synthesis_kwargs: Any,
    ) -> None:
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim = z_dim, c_dim, w_dim
        self.img_resolution, self.img_channels = img_resolution, img_channels
        self.synthesis = SynthesisNetwork(w_dim, img_resolution, img_channels, **synthesis_kwargs)
        self.num_ws = self.synthesis.num_ws
        self.mapping = MappingNetwork(z_dim, c_dim, w_dim, self.num_ws, **(mapping_kwargs or {}))

    def forward(
        self,
        z: Tensor,
        c: Any = None,
        truncation_psi: float = 1.0,
        truncation_cutoff: Any = None,
        update_emas: bool = False,
        noise_mode: str = "random",  # noqa: ARG002 - as the official code calls it
        force_fp32: bool = True,  # noqa: ARG002
    ) -> Tensor:
        """Images (N, C, R, R)."""
        ws = self.mapping(z, c, truncation_psi, truncation_cutoff, update_emas)
        return self.synthesis(ws, update_emas=update_emas)


class SuperresGenerator(Generator):
    """StyleGAN-XL's above 16 px: more layers behind a generator that was trained before."""
