"""StyleGAN2's generator in plain PyTorch, dense or separable: the text that output files carry.

Written afresh after Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (2020),
with the class names of NVIDIA's and Projected GAN's files. Files of the ``torch_utils.persistence``
kind bring the source of their classes along; dsconvert writes *this module's* text there. So it is
one file, imports nothing but torch and the standard library, and keeps to the Python 3.7 and torch
1.7 of those codebases.

A modulated convolution is ``y = d * (W (s * x))``: the styles ``s`` scale the input channels, one
kernel serves all samples, and ``d`` gives each output unit variance again (section 2.2). The kernel
is a child module ``demod.conv``, a plain ``nn.Conv2d`` (``nn.ConvTranspose2d`` where the layer
upsamples), which a converter may replace by a pair ``pointwise``, ``depthwise`` in either order;
``d`` is computed from whatever kernel stands there, so it is exact for the pair too.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ROOT2 = math.sqrt(2.0)
ACTIVATIONS: Any = {
    "linear": (lambda x: x, 1.0),
    "relu": (F.relu, _ROOT2),
    "lrelu": (lambda x: F.leaky_relu(x, 0.2), _ROOT2),
    "tanh": (torch.tanh, 1.0),
    "sigmoid": (torch.sigmoid, 1.0),
    "elu": (F.elu, 1.0),
    "selu": (F.selu, 1.0),
    "softplus": (F.softplus, 1.0),
    "swish": (lambda x: torch.sigmoid(x) * x, _ROOT2),
}
"""Functions, and the gain that keeps the variance."""
_MERGED_RANK = 2
"""Up to this rank depthwise and FIR are cheaper as one: 9 R taps a pixel, not 9 R / 4 + 16."""
_NUMBER = (int, float)
_MAYBE = (int, float, type(None))


def _unit(x: Tensor) -> Tensor:
    """``x`` (N, C) with mean square one."""
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


def _free(x: Any) -> bool:
    """Whether a fresh tensor may be changed in place: nothing records it."""
    return type(x) is Tensor and not torch.is_grad_enabled()


def _clamped(x: Tensor, limit: float) -> Tensor:
    return x.clamp_(-limit, limit) if _free(x) else x.clamp(-limit, limit)


def default_filter() -> Tensor:
    """The usual low-pass filter, (1, 3, 3, 1) in both directions, normalised: (4, 4)."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    return torch.outer(taps, taps) / 64


def _taps(module: nn.Module) -> int:
    """The size L of a module's low-pass filter (L, L); plain, also while torch.fx traces."""
    fir: Any = module._buffers["resample_filter"]
    return int(fir.shape[-1])


def upsample(x: Tensor, module: Any, channels: int) -> Tensor:
    """Zero-insertion x2 and the module's low-pass filter: (N, C, H, W) -> (N, C, 2H, 2W)."""
    size = _taps(module)
    kernel = (module.resample_filter * 4).expand(channels, 1, size, size)
    return F.conv_transpose2d(x, kernel, stride=2, padding=size // 2 - 1, groups=channels)


def smooth(x: Tensor, module: Any, channels: int) -> Tensor:
    """The low-pass filter behind a transposed 3x3: (N, C, 2H + 1, 2W + 1) -> (N, C, 2H, 2W)."""
    size = _taps(module)
    kernel = (module.resample_filter.flip(0, 1) * 4).expand(channels, 1, size, size)
    return F.conv2d(x, kernel, padding=size // 2 - 1, groups=channels)


def mixed(x: Tensor, weights: Tensor) -> Tensor:
    """A pointwise convolution with weights (N, O, I) a sample: (N, I, H, W) -> (N, O, H, W)."""
    y = torch.bmm(weights, x.flatten(2))
    return y.reshape(x.shape[0], weights.shape[1], x.shape[2], x.shape[3])


def kernel_energy(conv: nn.Module) -> Tensor:
    """``sum_k W[o, i, k]^2`` (O, I) of the effective kernel of a convolution or separable pair.

    For a pair the sum over taps goes through the Gram matrices of its filters, which is exact:
    ``sum_rs P[r] P[s] <D[r], D[s]>`` for pointwise P and depthwise D.
    """
    inside: Any = conv
    if not isinstance(conv, nn.Sequential):
        energy = inside.weight.square().sum((2, 3))
        return energy.t() if isinstance(conv, nn.ConvTranspose2d) else energy
    mix = inside.pointwise.weight.flatten(1)
    filters = inside.depthwise.weight
    if next(iter(inside._modules)) == "pointwise":
        outs = inside.depthwise.out_channels
        filters = filters.reshape(outs, -1, filters.shape[-1] * filters.shape[-2])
        mix = mix.reshape(outs, filters.shape[1], -1)
        gram = torch.bmm(filters, filters.transpose(1, 2))
        return (torch.bmm(gram, mix) * mix).sum(1)
    inp = inside.depthwise.in_channels
    filters = filters.reshape(inp, -1, filters.shape[-1] * filters.shape[-2])
    mix = mix.reshape(-1, inp, filters.shape[1]).transpose(0, 1)
    gram = torch.bmm(filters, filters.transpose(1, 2))
    return (torch.bmm(mix, gram) * mix).sum(2).t()


def kernel_channels(conv: Any) -> Any:
    """The numbers of inputs and outputs of a convolution or separable pair."""
    parts = list(conv.children()) or [conv]
    # By vars: a converter that watches who reads a kernel's attributes need not mind this.
    return vars(parts[0])["in_channels"], vars(parts[-1])["out_channels"]


def pointwise(weight: nn.Parameter, bias: Any) -> nn.Conv2d:
    """A 1x1 convolution around ``weight`` (O, I, 1, 1) and ``bias`` (O,) or None."""
    conv = nn.Conv2d(1, 1, 1, bias=bias is not None)
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
        bias: bool = True,
        activation: str = "linear",
        lr_multiplier: float = 1.0,
        bias_init: float = 0.0,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.activation, self.bias_gain = activation, lr_multiplier
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full([out_features], bias_init)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, I) to (N, O)."""
        weight = self.weight * (self.bias_gain / math.sqrt(self.in_features))
        bias = None if self.bias is None else self.bias * self.bias_gain
        function, gain = ACTIVATIONS[self.activation]
        return function(F.linear(x, weight, bias)) * gain


class MappingNetwork(nn.Module):
    """Latents z (N, Z) and classes c (N, C) to intermediate latents (N, num_ws, W)."""

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
        num_layers: int = 8,
        embed_features: Any = None,
        layer_features: Any = None,
        activation: str = "lrelu",
        lr_multiplier: float = 0.01,
        w_avg_beta: Any = 0.998,
    ) -> None:
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim = z_dim, c_dim, w_dim
        self.num_ws, self.num_layers, self.w_avg_beta = num_ws, num_layers, w_avg_beta
        embedded = (embed_features or w_dim) if c_dim else 0
        widths = [z_dim + embedded] + [layer_features or w_dim] * (num_layers - 1) + [w_dim]
        if c_dim:
            self.embed = FullyConnectedLayer(c_dim, embedded)
        for i in range(num_layers):
            layer = FullyConnectedLayer(
                widths[i], widths[i + 1], activation=activation, lr_multiplier=lr_multiplier
            )
            setattr(self, f"fc{i}", layer)
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

        The mean of w is moved where ``update_emas`` asks for it (StyleGAN3, Projected GAN).
        """
        x = _unit(z.to(torch.float32))
        if self.c_dim:
            x = torch.cat([x, _unit(self.embed(c.to(torch.float32)))], 1)
        for i in range(self.num_layers):
            x = getattr(self, f"fc{i}")(x)
        if update_emas and self.w_avg_beta is not None:
            with torch.no_grad():
                self.w_avg.copy_(x.detach().mean(0).lerp(self.w_avg, self.w_avg_beta))
        ws = x.unsqueeze(1).repeat(1, self.num_ws, 1)
        if truncation_psi != 1:
            if self.w_avg_beta is None:
                raise ValueError("truncation needs the mean of w, which this file does not have")
            pulled = self.w_avg + truncation_psi * (ws - self.w_avg)
            cut = self.num_ws if truncation_cutoff is None else truncation_cutoff
            ws = torch.cat([pulled[:, :cut], ws[:, cut:]], 1)
        return ws


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

        ``y``, what the kernel made of the modulated input, is not needed here; a converter that
        fits ``gain`` looks at it (:meth:`follow`).
        """
        energy = styles.square() @ kernel_energy(self.conv).t()
        return torch.rsqrt(energy + 1e-8) * self.gain

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


class Noise(nn.Module):
    """Adds one plane of noise to all channels, scaled by a learned ``weight``."""

    noise_const: Tensor

    def __init__(self, resolution: int) -> None:
        super().__init__()
        self.register_buffer("noise_const", torch.randn(resolution, resolution))
        self.weight = nn.Parameter(torch.zeros([]))

    def forward(self, y: Tensor, mode: str = "random") -> Tensor:
        """Add a plane (N, 1, R, R), drawn anew, or the stored one to a fresh map (N, C, R, R)."""
        if mode == "const":
            plane = self.noise_const
        else:
            plane = torch.randn([y.shape[0], 1, *self.noise_const.shape], device=y.device)
        plane = plane * self.weight
        return y.add_(plane) if _free(y) else y + plane


class SynthesisLayer(nn.Module):
    """Modulated 3x3 convolution, noise, bias and activation; upsamples first where ``up`` is 2."""

    FIELDS: ClassVar[Any] = {"resolution": int, "up": int, "use_noise": bool, "activation": str}
    OPTIONS: ClassVar[Any] = {"conv_clamp": _MAYBE}
    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: int,
        up: int = 1,
        use_noise: bool = True,
        activation: str = "lrelu",
        conv_clamp: Any = None,
    ) -> None:
        super().__init__()
        self.resolution, self.up, self.use_noise = resolution, up, use_noise
        self.activation, self.conv_clamp = activation, conv_clamp
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1.0)
        weight = torch.randn(out_channels, in_channels, 3, 3)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.register_buffer("resample_filter", default_filter())
        self.grow(nn.Parameter(weight), Noise(resolution) if use_noise else None)

    def grow(self, weight: nn.Parameter, noise: Any) -> None:
        """Make the children around a dense kernel ``weight`` (O, I, 3, 3)."""
        outs, inp = weight.shape[:2]
        if self.up == 2:
            conv: Any = nn.ConvTranspose2d(1, 1, 3, stride=2, bias=False)
            turned = weight.detach().transpose(0, 1).contiguous()
            conv.weight = nn.Parameter(turned, requires_grad=weight.requires_grad)
        else:
            conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
            conv.weight = weight
        conv.in_channels, conv.out_channels = inp, outs
        self.demod = Demodulation(conv, outs)
        self.demod.gain = weight.new_ones(outs)
        if noise is not None:
            self.noise = noise

    # Not stored: a converter may remove channels.
    @property
    def in_channels(self) -> int:
        """The kernel's inputs."""
        return int(kernel_channels(self.demod.conv)[0])

    @property
    def out_channels(self) -> int:
        """The kernel's outputs."""
        return int(kernel_channels(self.demod.conv)[1])

    def forward(
        self, x: Tensor, w: Tensor, noise_mode: str = "random", gain: float = 1.0
    ) -> Tensor:
        """(N, I, H, W) and latents (N, W) to (N, O, R, R)."""
        if noise_mode not in ("random", "const", "none"):
            raise ValueError(f"noise_mode is {noise_mode!r}, not 'random', 'const' or 'none'")
        function, own = ACTIVATIONS[self.activation]
        styles = self.affine(w)
        if type(x) is Tensor and not x.is_meta and isinstance(self.demod.conv, nn.Sequential):
            y = self._pair(x, styles)
        else:
            conv: Any = self.demod.conv
            y = conv(x * styles[:, :, None, None])
            if self.up == 2:
                y = smooth(y, self, self.out_channels)
            scale = self.demod(styles, y)[:, :, None, None]
            y = y.mul_(scale) if _free(y) else y * scale
        if self.use_noise and noise_mode != "none":
            y = self.noise(y, noise_mode)
        bias = self.bias[:, None, None]
        y = y.add_(bias) if _free(y) else y + bias
        in_place = self.activation == "lrelu" and _free(y)
        y = F.leaky_relu_(y, 0.2) if in_place else function(y)
        y = y.mul_(own * gain) if _free(y) else y * (own * gain)
        if self.conv_clamp is not None:
            y = _clamped(y, self.conv_clamp * gain)
        return y

    def _pair(self, x: Tensor, styles: Tensor) -> Tensor:
        """A separable pair with styles and demodulation in its factors, not in the maps.

        Both factors are linear a channel, so scaling the first one's weights by the styles and the
        second one's by the demodulation is exact, and spares two passes over the maps.
        """
        pair: Any = self.demod.conv
        scale = self.demod(styles)
        n, inp, height, width = x.shape
        outs, side = self.out_channels, self.resolution
        point, spatial = pair.pointwise.weight.flatten(1), pair.depthwise.weight
        if next(iter(pair._modules)) == "depthwise":
            filters = spatial.reshape(1, inp, -1) * styles[:, :, None]
            y = self._spatial(x.reshape(1, n * inp, height, width), filters, spatial.shape, n * inp)
            y = y.reshape(n, point.shape[1], side, side)
            return mixed(y, point * scale[:, :, None])
        y = mixed(x, point * styles[:, None, :])
        filters = spatial.reshape(1, outs, -1) * scale[:, :, None]
        flat = y.reshape(1, n * point.shape[0], height, width)
        y = self._spatial(flat, filters, spatial.shape, n * outs)
        return y.reshape(n, outs, side, side)

    def _spatial(self, x: Tensor, filters: Tensor, shape: Any, groups: int) -> Tensor:
        """The depthwise factor on the maps (1, N C, H, W) of all samples, and the FIR behind it."""
        filters = filters.reshape(-1, *shape[1:])
        if self.up == 1:
            return F.conv2d(x, filters, padding=1, groups=groups)
        if len(filters) > _MERGED_RANK * groups:
            y = F.conv_transpose2d(x, filters, stride=2, groups=groups)
            return smooth(y, self, int(y.shape[1]))
        # Both are linear and act on single channels: one kernel, their full convolution.
        size = _taps(self)
        fir = self.resample_filter.flip(0, 1)[None, None] * 4
        merged = F.conv2d(filters.reshape(-1, 1, *shape[2:]), fir, padding=size - 1)
        merged = merged.reshape(len(filters), -1, *merged.shape[2:])
        return F.conv_transpose2d(x, merged, stride=2, padding=size // 2, groups=groups)


class ToRGBLayer(nn.Module):
    """Modulated 1x1 convolution to the image's channels, without demodulation.

    ``scale`` is the equalised learning rate's, one over the root of the number of inputs that the
    layer was trained with.
    """

    FIELDS: ClassVar[Any] = {}
    OPTIONS: ClassVar[Any] = {"conv_clamp": _MAYBE, "scale": _MAYBE}

    def __init__(
        self, in_channels: int, out_channels: int, w_dim: int, conv_clamp: Any = None
    ) -> None:
        super().__init__()
        self.conv_clamp, self.scale = conv_clamp, 1 / math.sqrt(in_channels)
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1.0)
        weight = nn.Parameter(torch.randn(out_channels, in_channels, 1, 1))
        self.grow(weight, nn.Parameter(torch.zeros(out_channels)))

    def grow(self, weight: nn.Parameter, bias: nn.Parameter) -> None:
        """Make the child around a kernel ``weight`` (O, I, 1, 1)."""
        self.conv = pointwise(weight, bias)

    @property
    def in_channels(self) -> int:
        """The kernel's inputs."""
        return int(kernel_channels(self.conv)[0])

    @property
    def out_channels(self) -> int:
        """The kernel's outputs."""
        return int(kernel_channels(self.conv)[1])

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """(N, I, R, R) and latents (N, W) to (N, C, R, R)."""
        styles = self.affine(w) * self.scale
        y = self.conv(x * styles[:, :, None, None])
        return y if self.conv_clamp is None else _clamped(y, self.conv_clamp)


class Conv2dLayer(nn.Module):
    """The 1x1 convolution beside a residual block: before the upsampling, where it is cheap.

    ``scale`` is as for :class:`ToRGBLayer`.
    """

    FIELDS: ClassVar[Any] = {"up": int, "activation": str}
    OPTIONS: ClassVar[Any] = {"scale": _MAYBE}

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.up, self.activation, self.scale = 2, "linear", 1 / math.sqrt(in_channels)
        self.register_buffer("resample_filter", default_filter())
        self.grow(nn.Parameter(torch.randn(out_channels, in_channels, 1, 1)))

    def grow(self, weight: nn.Parameter) -> None:
        """Make the child around a kernel ``weight`` (O, I, 1, 1)."""
        self.conv = pointwise(weight, None)

    @property
    def in_channels(self) -> int:
        """The kernel's inputs."""
        return int(kernel_channels(self.conv)[0])

    @property
    def out_channels(self) -> int:
        """The kernel's outputs."""
        return int(kernel_channels(self.conv)[1])

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        """(N, I, H, W) to (N, O, 2H, 2W)."""
        y = self.conv(x) * (gain * self.scale)
        return upsample(y, self, self.out_channels)


class SynthesisBlock(nn.Module):
    """The layers of one resolution, and what they add to the image."""

    FIELDS: ClassVar[Any] = {
        "in_channels": int,
        "w_dim": int,
        "resolution": int,
        "img_channels": int,
        "is_last": bool,
        "architecture": str,
        "use_fp16": bool,
    }

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: int,
        img_channels: int,
        is_last: bool,
        architecture: str = "skip",
        conv_clamp: Any = None,
        use_fp16: bool = False,
        use_noise: bool = True,
    ) -> None:
        super().__init__()
        self.in_channels, self.w_dim, self.resolution = in_channels, w_dim, resolution
        self.img_channels, self.is_last, self.architecture = img_channels, is_last, architecture
        self.use_fp16 = use_fp16
        options: Any = {"use_noise": use_noise, "conv_clamp": conv_clamp}
        self.register_buffer("resample_filter", default_filter())
        if in_channels:
            self.conv0 = SynthesisLayer(
                in_channels, out_channels, w_dim, resolution, up=2, **options
            )
        else:
            self.const = nn.Parameter(torch.randn(out_channels, resolution, resolution))
        self.conv1 = SynthesisLayer(out_channels, out_channels, w_dim, resolution, **options)
        if is_last or architecture == "skip":
            self.torgb = ToRGBLayer(out_channels, img_channels, w_dim, conv_clamp)
        if in_channels and architecture == "resnet":
            self.skip = Conv2dLayer(in_channels, out_channels)
        self.count()

    def count(self) -> None:
        """How many latents the block takes."""
        self.num_conv = 2 if self.in_channels else 1
        self.num_torgb = 1 if self.is_last or self.architecture == "skip" else 0

    def forward(self, x: Any, img: Any, ws: Tensor, noise_mode: str = "random") -> Any:
        """Maps and image of half the size (or None), latents (N, L, W), to maps and image."""
        if not self.in_channels:
            x = self.const.unsqueeze(0).expand(ws.shape[0], -1, -1, -1)
            x = self.conv1(x, ws[:, 0], noise_mode)
        elif self.architecture == "resnet":
            beside = self.skip(x, gain=math.sqrt(0.5))
            x = self.conv0(x, ws[:, 0], noise_mode)
            x = beside + self.conv1(x, ws[:, 1], noise_mode, math.sqrt(0.5))
        else:
            x = self.conv1(self.conv0(x, ws[:, 0], noise_mode), ws[:, 1], noise_mode)
        if img is not None:
            img = upsample(img, self, self.img_channels)
        if self.num_torgb:
            y = self.torgb(x, ws[:, self.num_conv])
            img = y if img is None else img + y
        return x, img


class SynthesisNetwork(nn.Module):
    """Intermediate latents (N, num_ws, W) to images (N, C, R, R)."""

    FIELDS: ClassVar[Any] = {"w_dim": int, "img_resolution": int, "img_channels": int}

    def __init__(
        self,
        w_dim: int,
        img_resolution: int,
        img_channels: int,
        channel_base: int = 32768,
        channel_max: int = 512,
        num_fp16_res: int = 0,
        architecture: str = "skip",
        conv_clamp: Any = None,
        use_noise: bool = True,
    ) -> None:
        super().__init__()
        self.w_dim, self.img_resolution, self.img_channels = w_dim, img_resolution, img_channels
        before, half = 0, max(2 ** (int(math.log2(img_resolution)) + 1 - num_fp16_res), 8)
        for resolution in self.resolutions():
            width = min(channel_base // resolution, channel_max)
            block = SynthesisBlock(
                before,
                width,
                w_dim,
                resolution,
                img_channels,
                is_last=resolution == img_resolution,
                architecture=architecture,
                conv_clamp=conv_clamp,
                use_fp16=resolution >= half,
                use_noise=use_noise,
            )
            setattr(self, f"b{resolution}", block)
            before = width
        self.count()

    def resolutions(self) -> Any:
        """4, 8, ... up to the image's."""
        return [2**i for i in range(2, int(math.log2(self.img_resolution)) + 1)]

    def count(self) -> None:
        """How many latents there are: one a convolution, and one for the last image layer."""
        blocks: Any = [getattr(self, f"b{r}") for r in self.resolutions()]
        self.block_resolutions = self.resolutions()
        self.num_ws = sum(b.num_conv for b in blocks) + blocks[-1].num_torgb

    def forward(
        self,
        ws: Tensor,
        c: Any = None,  # noqa: ARG002 - as the official code calls it
        noise_mode: str = "random",
        force_fp32: bool = True,  # noqa: ARG002
        fused_modconv: Any = None,  # noqa: ARG002
        update_emas: bool = False,  # noqa: ARG002
    ) -> Tensor:
        """Synthesise. The last three change nothing here: all blocks compute in float32."""
        ws, first = ws.to(torch.float32), 0
        x = img = None
        for resolution in self.block_resolutions:
            block: Any = getattr(self, f"b{resolution}")
            count = block.num_conv + block.num_torgb
            x, img = block(x, img, ws[:, first : first + count], noise_mode)
            first += block.num_conv
        result: Any = img
        return result


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
        noise_mode: str = "random",
        force_fp32: bool = True,  # noqa: ARG002 - as the official code calls it
        fused_modconv: Any = None,  # noqa: ARG002
    ) -> Tensor:
        """Images (N, C, R, R); ``noise_mode`` is ``random``, ``const`` or ``none``."""
        ws = self.mapping(z, c, truncation_psi, truncation_cutoff, update_emas)
        return self.synthesis(ws, noise_mode=noise_mode)
