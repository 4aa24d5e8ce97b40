"""The values of settings that have a fixed set of them; each tuple is made from its ``Literal``."""

from __future__ import annotations

from typing import Literal, get_args

Preset = Literal["none", "exact", "paper", "balanced", "fast"]
PRESETS: tuple[Preset, ...] = get_args(Preset)
Width = float | Literal["auto"]
"""The share of its channels that every map keeps; auto: chosen for each map by loss and cost."""
Init = Literal["fit", "svd", "random"]
INITS: tuple[Init, ...] = get_args(Init)
Dtype = Literal["float32", "float16", "bfloat16", "amp", "amp-float16", "amp-bfloat16"]
"""How a model runs while it is measured: plain names convert the weights; ``amp`` is autocast in
the device's usual type (float16 on CUDA, bfloat16 elsewhere)."""
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
Noise = Literal["zero", "fixed", "random"]
"""How an export treats noise injections; see :mod:`dsconvert.export`."""
NOISES: tuple[Noise, ...] = get_args(Noise)
NoiseSource = Literal["device", "official"]
"""Where freshly drawn noise comes from; see :mod:`dsconvert.model.noise_source`."""
NOISE_SOURCES: tuple[NoiseSource, ...] = get_args(NoiseSource)
Format = Literal["onnx", "torch", "safetensors", "openvino", "coreml", "tensorrt", "page", "hub"]
"""Formats that a generator can be exported to."""
FORMATS: tuple[Format, ...] = get_args(Format)
SUFFIXES: dict[str, Format] = {
    ".onnx": "onnx",
    ".pt2": "torch",
    ".xml": "openvino",
    ".mlpackage": "coreml",
    ".ep": "tensorrt",
    ".safetensors": "safetensors",
}
"""The formats of one file, by the end of its name; a page and a hub folder are folders."""
ExportDtype = Literal["fp32", "fp16", "int8"]
"""Weights of an export; see :mod:`dsconvert.export.reduced`."""
EXPORT_DTYPES: tuple[ExportDtype, ...] = get_args(ExportDtype)
ImageFormat = Literal["png", "jpeg", "webp"]
"""Files of single images."""
IMAGE_FORMATS: tuple[ImageFormat, ...] = get_args(ImageFormat)
ImageOutput = Literal["picture", "folder", "zip", "video"]
"""Outputs of ``generate``: one grid, a file an image, a data set, or a walk through latents."""
Values = Literal["unit", "signed"]
"""The range of a picture's values: 0 to 1, or -1 to 1."""
Metric = Literal["fid", "kid", "fd-lite0", "pr-lite0", "pd-lite0", "fd-backbone", "pr-backbone"]
"""``fd`` is a Frechet distance, ``pr`` precision and recall, ``pd`` a perceptual distance to the
original, latent by latent; ``backbone`` is a second network that the user names."""
METRICS: tuple[Metric, ...] = get_args(Metric)
Weights = Literal["auto", "package", "hub", "random"]
"""Where the ImageNet weights of the discriminator's backbone come from."""
WEIGHTS: tuple[Weights, ...] = get_args(Weights)
Policy = Literal["color", "translation", "cutout"]
"""Augmentations of DiffAugment."""
POLICIES: tuple[Policy, ...] = get_args(Policy)
Spectral = Literal["keep", "fold"]
Precision = Literal["fp32", "tf32", "bf16", "fp16"]
Recompute = Literal["auto", "none", "blocks", "lean"]
CudaGraph = Literal["auto", "on", "off"]
"""Whether the passes of a training step are replayed as CUDA graphs."""
Clock = Literal["wall", "cpu"]
Statistics = Literal["frozen", "batch"]
Optimiser = Literal["muon", "adam"]
