"""The values that a setting with a fixed set of them may take."""

from __future__ import annotations

from typing import Literal

Preset = Literal["exact", "paper", "balanced", "fast"]
Init = Literal["fit", "svd", "random"]
PRESETS: tuple[Preset, ...] = ("exact", "paper", "balanced", "fast")
INITS: tuple[Init, ...] = ("fit", "svd", "random")
DTYPES = ("float32", "float16", "bfloat16", "amp", "amp-float16", "amp-bfloat16")
"""How a model runs while it is measured: plain names convert the weights; ``amp`` is autocast in
the device's usual type (float16 on CUDA, bfloat16 elsewhere)."""
Noise = Literal["zero", "fixed", "random"]
NOISES: tuple[Noise, ...] = ("zero", "fixed", "random")
"""What becomes of noise injections in an export; see :mod:`dsconvert.export`."""
FORMATS = ("onnx", "torch", "safetensors", "openvino")
"""What a generator can be exported to."""
