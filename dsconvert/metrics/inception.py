"""Inception features as clean-fid takes them, for FID and KID (Parmar et al. 2022).

The network is NVIDIA's TorchScript copy of the one that FID was defined with. It is 90 MB and is
downloaded once, to a folder of this user's own; without internet that is said at once.

A TorchScript file is a program. Only the one file with the SHA-256 below is ever loaded, and the
bytes that are run are the very bytes that were checked.
"""

from __future__ import annotations

import hashlib
import os
import urllib.request
import warnings
from collections.abc import Iterator
from http.client import HTTPException
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsconvert.errors import DsconvertError, MissingExtraError, UsageError
from dsconvert.projected.lite0 import three_channels
from dsconvert.util.extras import pip_install
from dsconvert.util.files import whole_file

FILE = "inception-2015-12-05.pt"
URL = (
    "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"
    "inception-2015-12-05.pt"
)
SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
"""Of that file, as crowsonkb/k-diffusion (``k_diffusion/evaluation.py``) and others publish it."""
_LARGEST = 1 << 27
"""Bytes; the file has three quarters of that. A server that sends more is not waited for."""
_SIDE = 299
_WIDTH = 2048
_TIMEOUT = 20.0


def cache_folder() -> Path:
    """``$DSCONVERT_CACHE``, or ``dsconvert`` in the user's cache folder."""
    if os.environ.get("DSCONVERT_CACHE"):
        return Path(os.environ["DSCONVERT_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dsconvert"


def inception_file(*, timeout: float = _TIMEOUT) -> Path:
    """The network's file, downloaded if it is not there.

    What is there is not judged here; :func:`inception_bytes` does that.

    Raises:
        MissingExtraError: it is not there and can't be had, or what is sent is another file.
    """
    folder = cache_folder()
    target = folder / FILE
    if target.is_file():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Another process may be downloading the same file: then either copy will do.
        with whole_file(target, overwrite=True) as beside, beside.open("wb") as out:
            for piece in _pieces(timeout):
                out.write(piece)
    except (OSError, DsconvertError) as error:  # no name, no route, refused, a full disk
        raise MissingExtraError(
            f"FID and KID need Inception's weights, and {URL} can't be downloaded ({error}). Use "
            f"--metrics fd-lite0, or put that file into {folder}."
        ) from error
    return target


def _pieces(timeout: float) -> Iterator[bytes]:
    """The file as the server sends it; its end comes only if it is the right file.

    Raises:
        DsconvertError: the network fails, or another file is sent.
    """
    digest, size = hashlib.sha256(), 0
    try:
        with urllib.request.urlopen(URL, timeout=timeout) as response:
            announced = response.headers.get("Content-Length")
            while size <= _LARGEST and (piece := response.read(1 << 20)):
                digest.update(piece)
                size += len(piece)
                yield piece
    except (OSError, HTTPException) as error:
        raise DsconvertError(str(error)) from error
    if announced is not None and size < int(announced):
        raise DsconvertError(f"it broke off after {size} of {announced} bytes")
    if digest.hexdigest() != SHA256:
        raise DsconvertError(
            f"what was sent is another file: its SHA-256 is {digest.hexdigest()}, not {SHA256}"
        )


def inception_bytes(path: Path) -> bytes:
    """The content of the network's file, if it is the one that is known.

    Raises:
        MissingExtraError: it is another file, or can't be read; nothing of it has run.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MissingExtraError(
            f"{path} can't be read ({error}); delete it and it is downloaded anew."
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        raise MissingExtraError(
            f"{path} is not the Inception network that FID is defined with (its SHA-256 is "
            f"{found}, not {SHA256}), so nothing of it was run; delete it and it is downloaded "
            "anew."
        )
    return data


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
        except ImportError as error:
            raise MissingExtraError(
                f"FID and KID need clean-fid ({error}): {pip_install('metrics')}."
            ) from error
        path = inception_file()
        data = inception_bytes(path)
        self._resize: Any = resize.make_resizer("PIL", False, "bicubic", (_SIDE, _SIDE))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is the file's format, however old
            self._net: Any = torch.jit.load(BytesIO(data), map_location=self._device).eval()

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
        batch = torch.from_numpy(np.stack(resized)).to(self._device)
        # As clean-fid's own wrapper: the network without its resizing, on levels about 0.
        return self._net.layers.forward((batch - 128) / 128).reshape(-1, _WIDTH).float().cpu()


def as_bytes(images: Tensor) -> Tensor:
    """[-1, 1] to the levels of the official ``gen_images.py``, uint8."""
    return (images.float().clamp(-1, 1) * 127.5 + 128).clamp(0, 255).byte()
