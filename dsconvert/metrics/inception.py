"""Inception features as clean-fid computes them, for FID and KID (Parmar et al. 2022).

The network is NVIDIA's TorchScript copy of the one that FID was defined with: 90 MB, downloaded
once to dsconvert's cache folder. If the download fails, the command fails immediately.

A TorchScript file is a program. Only the file with the SHA-256 below is ever loaded, and the bytes
that run are the very bytes that were checked.
"""

from __future__ import annotations

import hashlib
import warnings
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsconvert.data.pictures import to_bytes
from dsconvert.errors import DsconvertError, MissingExtraError, UsageError
from dsconvert.projected.lite0 import three_channels
from dsconvert.util.cache import cache_folder
from dsconvert.util.downloads import download
from dsconvert.util.extras import pip_install
from dsconvert.util.full_memory import halving

FILE = "inception-2015-12-05.pt"
URL = (
    "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"
    "inception-2015-12-05.pt"
)
SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
"""Of that file, as crowsonkb/k-diffusion (``k_diffusion/evaluation.py``) and others publish it."""
_SIDE = 299
_WIDTH = 2048


def inception_file() -> Path:
    """Return the path of the network's file; download it if it is not in the cache folder.

    This does not check a file that is already there; :func:`inception_bytes` does.

    Raises:
        MissingExtraError: the file is missing and can't be downloaded, or the server sends another.
    """
    target = cache_folder() / FILE
    if target.is_file():
        return target
    try:
        download(URL, target, sha256=SHA256)
    except DsconvertError as error:
        raise MissingExtraError(
            f"FID and KID need Inception's weights, and {URL} can't be downloaded ({error}). Use "
            f"--metrics fd-lite0, or put that file into {target.parent}."
        ) from error
    return target


def inception_bytes(path: Path) -> bytes:
    """Return the content of the network's file after checking its SHA-256.

    Raises:
        MissingExtraError: the hash differs, or the file can't be read; nothing in it has run.
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
    """Maps images ``(N, C, H, W)`` in [-1, 1] to features ``(N, 2048)``, float32.

    Images are rounded down to 8 bit, as in a PNG, and resized by clean-fid's own antialiased
    bicubic filter.

    Args:
        device: where the network works; images and features are on the CPU.

    Raises:
        MissingExtraError: clean-fid is not installed, or the weights can't be downloaded.
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
            warnings.simplefilter("ignore")  # torch deprecates TorchScript, the file's format
            self._net: Any = torch.jit.load(BytesIO(data), map_location=self._device).eval()

    @torch.no_grad()
    def __call__(self, images: Tensor, *, batch: int = 25) -> Tensor:
        """Compute the features of ``images``, ``batch`` images at a time.

        Grey images are repeated in three channels; transparent ones are composited on white.

        Raises:
            UsageError: there are no images, or they do not have 1, 3 or 4 channels.
        """
        if images.dim() != 4 or not len(images) or images.shape[1] not in (1, 3, 4):
            raise UsageError(
                f"images are (N, C, H, W) with 1, 3 or 4 channels, not {list(images.shape)}."
            )
        parts: list[Tensor] = []
        for chunk in images.split(batch):
            parts += halving(lambda a, b, chunk=chunk: self._chunk(chunk[a:b]), len(chunk))
        return torch.cat(parts)

    def _chunk(self, images: Tensor) -> Tensor:
        levels = to_bytes(three_channels(images.float())).cpu().permute(0, 2, 3, 1).numpy()
        resized = [np.asarray(self._resize(picture)).transpose(2, 0, 1) for picture in levels]
        batch = torch.from_numpy(np.stack(resized)).to(self._device)
        # As in clean-fid's own wrapper: the network without its resizing, on levels around 0.
        return self._net.layers.forward((batch - 128) / 128).reshape(-1, _WIDTH).float().cpu()
