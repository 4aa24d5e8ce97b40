"""Inception features as clean-fid takes them, for FID and KID (Parmar et al. 2022).

The network is NVIDIA's TorchScript copy of the one that FID was defined with. It is 90 MB and is
downloaded once, to a folder of this user's own; without internet that is said at once.
"""

from __future__ import annotations

import os
import urllib.request
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsconvert.errors import MissingExtraError, UsageError
from dsconvert.lite0 import three_channels

FILE = "inception-2015-12-05.pt"
URL = (
    "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"
    "inception-2015-12-05.pt"
)
_SIDE = 299
_TIMEOUT = 20.0


def cache_folder() -> Path:
    """``$DSCONVERT_CACHE``, or ``dsconvert`` in the user's cache folder."""
    if os.environ.get("DSCONVERT_CACHE"):
        return Path(os.environ["DSCONVERT_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dsconvert"


def inception_file(*, timeout: float = _TIMEOUT) -> Path:
    """The network's file, downloaded if it is not there.

    Raises:
        MissingExtraError: it is not there and can't be had.
    """
    folder = cache_folder()
    target = folder / FILE
    if target.is_file():
        return target
    beside = target.with_name(f".{FILE}.{os.getpid()}.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(URL, timeout=timeout) as response, beside.open("wb") as out:
            announced = response.headers.get("Content-Length")
            while piece := response.read(1 << 20):
                out.write(piece)
            if announced is not None and out.tell() != int(announced):
                raise OSError(f"it broke off after {out.tell()} of {announced} bytes")
        beside.replace(target)
    except OSError as error:  # no name, no route, refused, a full disk
        raise MissingExtraError(
            f"FID and KID need Inception's weights, and {URL} can't be downloaded ({error}). Use "
            f"--metrics fd-lite0, or put that file into {folder}."
        ) from error
    finally:
        beside.unlink(missing_ok=True)
    return target


class InceptionFeatures:
    """Images ``(N, C, H, W)`` in [-1, 1] to features ``(N, 2048)``, float32.

    Levels are cut to 8 bit, as in a PNG, and resized by clean-fid's own antialiased bicubic filter.

    Args:
        device: where the network works; images and features are on the CPU.

    Raises:
        MissingExtraError: clean-fid is not installed, or the weights can't be had.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        try:
            resize: Any = import_module("cleanfid.resize")
            network: Any = import_module("cleanfid.inception_torchscript")
        except ImportError as error:
            raise MissingExtraError(
                f'FID and KID need clean-fid ({error}): pip install "dsconvert[metrics]".'
            ) from error
        path = inception_file()
        self._resize: Any = resize.make_resizer("PIL", False, "bicubic", (_SIDE, _SIDE))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # TorchScript is the file's format
                self._net: Any = network.InceptionV3W(str(path.parent), download=False).to(
                    self._device
                )
        except RuntimeError as error:
            raise MissingExtraError(
                f"{path} is no TorchScript network ({str(error).splitlines()[0][:120]}); delete it "
                "and it is downloaded anew."
            ) from error

    @torch.no_grad()
    def __call__(self, images: Tensor, *, batch: int = 25) -> Tensor:
        """Features of ``images``, in chunks of ``batch``; grey is repeated, alpha put on white.

        Raises:
            UsageError: no images, or not 1, 3 or 4 channels.
        """
        if images.dim() != 4 or not len(images) or images.shape[1] not in (1, 3, 4):
            raise UsageError(
                f"images are (N, C, H, W) with 1, 3 or 4 channels, not {list(images.shape)}."
            )
        return torch.cat([self._chunk(chunk) for chunk in images.split(batch)])

    def _chunk(self, images: Tensor) -> Tensor:
        levels = as_bytes(three_channels(images.float())).permute(0, 2, 3, 1).numpy()
        resized = [np.asarray(self._resize(picture)).transpose(2, 0, 1) for picture in levels]
        return self._net(torch.from_numpy(np.stack(resized)).to(self._device)).float().cpu()


def as_bytes(images: Tensor) -> Tensor:
    """[-1, 1] to the levels of the official ``gen_images.py``, uint8."""
    return (images.float().clamp(-1, 1) * 127.5 + 128).clamp(0, 255).byte()
