"""The PSNR of a fitted model's images to the original's, on the held-out latents of the fit."""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import Tensor, nn

from dsconvert.adapter import Adapter, image_tensor
from dsconvert.config.choices import Values
from dsconvert.data.pictures import psnr
from dsconvert.data.spectrograms import is_sound, stft_distance
from dsconvert.errors import AdapterError

_BEYOND = 2.0
"""Images in [-1, 1] overshoot by less; a larger output has another scale, or is no image."""
_CHANNELS = (1, 3, 4)


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
    images = None if outputs is None else _images(outputs, adapter)
    if images is None:
        return None
    made, wanted = images
    scale = picture_range(wanted, known=adapter is not None, values=values)
    if scale is None:
        return None
    if scale == "0 to 1":
        made, wanted = made * 2 - 1, wanted * 2 - 1
    value = float(psnr(made, wanted).mean())
    return value if math.isfinite(value) else None


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
) -> Literal["-1 to 1", "0 to 1"] | None:
    """Return the range of a batch of images; None where it is no image or has another range.

    Args:
        image: (N, C, H, W).
        known: whether an adapter has brought the images to [-1, 1].
        values: the range, where the model reads pictures of that range.
    """
    if image.shape[1] not in _CHANNELS or min(image.shape[-2:]) < 2:
        return None
    if known:
        return "-1 to 1"
    if values is not None:
        return "0 to 1" if values == "unit" else "-1 to 1"
    if float(image.abs().amax()) > _BEYOND:
        return None
    # A batch in [-1, 1] always has a negative pixel.
    return "0 to 1" if float(image.amin()) >= 0.0 and float(image.amax()) <= 1.0 else "-1 to 1"
