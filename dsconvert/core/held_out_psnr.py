"""Judge a fitted model by its outputs and the original's, on the held-out latents of the fit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dsconvert.adapter import Adapter, image_tensor
from dsconvert.config.choices import Values
from dsconvert.data.pictures import psnr
from dsconvert.data.spectrograms import is_sound, stft_distance
from dsconvert.errors import AdapterError
from dsconvert.model.inputs import Inputs, like, tensors_of

PictureRange = Literal["-1 to 1", "0 to 1"]
_BEYOND = 2.0
"""Images in [-1, 1] overshoot by less; a larger output has another scale, or is no image."""
_UNIT = (-0.25, 1.5)
"""Images in [0, 1] overshoot by less, where nothing clamps them."""
_NEGATIVE = 0.05
"""Of the magnitude of images in [0, 1], the most that lies below 0; in [-1, 1] far more does."""
_RARE = 1e-3
"""The share of pixels that says nothing about the range."""
_STILL = 1e-12
"""The variance of outputs that do not depend on the input: its share would be rounding errors."""
_CHANNELS = (1, 3, 4)


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """How near a fitted model's outputs are to the original's; see :class:`Conversion`.

    Attributes:
        psnr: of images, in dB.
        stft: of sounds.
        error: of the outputs of every other model, and of images.
        notes: which range was assumed, or why there is no PSNR.
    """

    psnr: float | None = None
    stft: float | None = None
    error: float | None = None
    notes: tuple[str, ...] = ()


class _Returns(nn.Module):
    """A stand-in for a model that has run already, for an adapter that wraps models."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self._output = output

    def forward(self, *_: Any) -> Any:
        """Return the output of that run."""
        return self._output


def held_out_psnr(
    outputs: tuple[Any, Any] | None,
    adapter: Adapter | None = None,
    values: Values | None = None,
) -> float | None:
    """Return the mean PSNR, dB, as :func:`dsconvert.data.pictures.psnr` defines it.

    Args:
        outputs: of the fitted model and of the original for the held-out batch.
        adapter: the model's; it converts an output to an image in [-1, 1]. Without one
            the first tensor (N, C, H, W) is the image; one in [0, 1] is brought to [-1, 1].
        values: the range of the pictures that the model reads and writes, if it does and no
            adapter knows it.

    Returns:
        None where the output is no image of 1, 3 or 4 channels, or of another range.
    """
    return None if outputs is None else judged(outputs, adapter, values).psnr


def judged(
    outputs: tuple[Any, Any], adapter: Adapter | None = None, values: Values | None = None
) -> HeldOut:
    """Return the figures for outputs of any kind; the arguments are as for :func:`held_out_psnr`.

    Models without an adapter whose output is no image (N, C, H, W) are judged by the first
    floating-point tensor of their output.
    """
    images = _images(outputs, adapter)
    if images is None:
        return HeldOut(error=_lost(*_first_tensors(outputs)))
    made, wanted = images
    if adapter is not None and is_sound(wanted):
        return HeldOut(stft=held_out_stft(outputs, adapter))
    scale = picture_range(wanted, known=adapter is not None, values=values)
    if scale is None:
        return HeldOut(error=_lost(made, wanted), notes=_no_psnr(wanted))
    if scale == "0 to 1":
        made, wanted = made * 2 - 1, wanted * 2 - 1
    value = float(psnr(made, wanted).mean())
    guessed = adapter is None and values is None
    return HeldOut(
        psnr=value if math.isfinite(value) else None,
        error=_lost(made.clamp(-1, 1), wanted.clamp(-1, 1)),
        notes=(f"images taken as [{scale.replace(' to ', ', ')}], by their values",) * guessed,
    )


def _first_tensors(outputs: tuple[Any, Any]) -> tuple[Tensor | None, Tensor | None]:
    """Return the first floating-point tensor of each of two outputs."""
    made, wanted = (
        next((t.detach().float() for t in tensors_of(o) if t.is_floating_point()), None)
        for o in outputs
    )
    return made, wanted


def _lost(made: Tensor | None, wanted: Tensor | None) -> float | None:
    """Return the squared error as a share of the variance over samples; None where that is 0.

    The variance is that of every value by itself (N - 1 in its denominator), so that 1 is the error
    of the mean of all outputs.
    """
    if made is None or wanted is None or made.shape != wanted.shape:
        return None
    if wanted.dim() < 2 or len(wanted) < 2:
        return None
    spread = float(wanted.double().var(0).mean())
    value = float((made.double() - wanted.double()).square().mean()) / max(spread, 1e-300)
    return value if spread > _STILL and math.isfinite(value) else None


def _no_psnr(image: Tensor) -> tuple[str, ...]:
    """Return the note about an output that looks like images but for its range."""
    if not _pictured(image) or not bool(image.isfinite().all()):
        return ()
    low, high = float(image.amin()), float(image.amax())
    values = f"{low:.3g} to {high:.3g}"
    return (f"no PSNR: the output ranges over {values}, no image in [-1, 1] or [0, 1]",)


def held_out_snr(outputs: tuple[Any, Any], adapter: Adapter | None) -> float | None:
    """Return the signal-to-noise ratio, dB, of a vocoder's sounds to its original's.

    The power of the original's sounds over that of the difference, all of the batch.

    Args:
        outputs: of the changed model and of the original for the held-out batch.
        adapter: the model's; it converts an output to a sound (N, 1, 1, T).

    Returns:
        None where the output is no sound.
    """
    images = _images(outputs, adapter)
    if images is None or images[1].shape[1:3] != (1, 1):
        return None
    made, wanted = images
    power, noise = (float(x.double().square().sum()) for x in (wanted, made - wanted))
    # A silent original has no power to compare with.
    value = 10 * math.log10(power / max(noise, 1e-30)) if power > 0 else math.nan
    return value if math.isfinite(value) else None


def held_out_stft(outputs: tuple[Any, Any] | None, adapter: Adapter | None) -> float | None:
    """Return the mean multi-resolution STFT distance of a fitted vocoder to its original.

    Args:
        outputs: of the fitted model and of the original for the held-out batch.
        adapter: the model's; it converts an output to a sound (N, 1, 1, T).

    Returns:
        None where the output is no sound.
    """
    images = None if outputs is None or adapter is None else _images(outputs, adapter)
    if images is None or not is_sound(images[1]):
        return None
    made, wanted = images
    value = float(stft_distance(made.flatten(1), wanted.flatten(1)).mean())
    return value if math.isfinite(value) else None


@torch.no_grad()
def medium(
    teacher: nn.Module, inputs: Inputs, *, seed: int, known: bool, values: Values | None
) -> tuple[PictureRange | None, bool]:
    """Return the range of a model's images, if it makes any, and whether it makes sounds.

    Args:
        teacher: returns (N, C, H, W), alone or among others; it is put into eval mode.
        inputs: of its calls.
        seed: of the inputs.
        known: see :func:`picture_range`.
        values: see there.
    """
    args = like(inputs(8, torch.Generator().manual_seed(seed)), teacher)
    made = image_tensor(teacher.eval()(*args))
    found = picture_range(made, known=known, values=values)
    return found, found is None and is_sound(made)


def _images(outputs: tuple[Any, Any], adapter: Adapter | None) -> tuple[Tensor, Tensor] | None:
    """Return two outputs as images of one shape; None where they are none."""
    try:
        made, wanted = (_image(output, adapter) for output in outputs)
    except AdapterError:
        return None
    return (made, wanted) if made.shape == wanted.shape else None


def _image(output: Any, adapter: Adapter | None) -> Tensor:
    if adapter is not None:
        output = adapter.picture(_Returns(output))(None)
    return image_tensor(output).detach().float()


def picture_range(
    image: Tensor, *, known: bool, values: Values | None = None
) -> PictureRange | None:
    """Return the range of a batch of images; None where it is no image or has another range.

    Where nothing says it, the pixels do; single ones that overshoot a range do not count.

    Args:
        image: (N, C, H, W).
        known: whether an adapter has brought the images to [-1, 1].
        values: the range, where the caller states it or the model reads pictures of it.
    """
    if not _pictured(image):
        return None
    if known:
        return "-1 to 1"
    if values is not None:
        return "0 to 1" if values == "unit" else "-1 to 1"
    if not _mostly(image, -_BEYOND, _BEYOND):
        return None
    negative = float(image.clamp(max=0).abs().sum()) / max(float(image.abs().sum()), 1e-30)
    return "0 to 1" if negative <= _NEGATIVE and _mostly(image, *_UNIT) else "-1 to 1"


def _pictured(image: Tensor) -> bool:
    """Return whether (N, C, H, W) has the channels and the size of images."""
    return image.shape[1] in _CHANNELS and min(image.shape[-2:]) >= 2


def _mostly(image: Tensor, low: float, high: float) -> bool:
    """Return whether all pixels but a few lie within a range; NaN does not."""
    inside = (image >= low) & (image <= high)
    return float((~inside).float().mean()) <= _RARE
