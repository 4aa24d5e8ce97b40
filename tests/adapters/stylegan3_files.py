"""Files in the layout of the official StyleGAN3 and StyleGAN-XL code, made from our generators.

They are written by Python's own pickle, with the numbers and arrays of NumPy that the official
classes hold; the text that such a file brings along is whatever a test wants (never NVIDIA's).
"""

from __future__ import annotations

import pickle
import sys
import types
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from dsconvert_adapters.stylegan3 import Generator, architecture
from torch import Tensor, nn

from tests.adapters.originals import tensor

SMALL: dict[str, Any] = {"channel_base": 256, "channel_max": 12, "num_layers": 5, "margin_size": 4}
RADIAL: dict[str, Any] = {"conv_kernel": 1, "use_radial_filters": True}
FEATURES = (1000, 320)
"""StyleGAN-XL's table of classes: its size in the released file."""


def fill(model: Any) -> Any:
    """Give a module of the official layout tensors that depend on their names alone.

    The designed filters stay: they are a part of what is compared.
    """
    with torch.no_grad():
        for name, stored in (*model.named_parameters(), *model.named_buffers()):
            value, last = tensor(name, tuple(stored.shape)), name.rpartition(".")[2]
            if last.endswith("_filter"):
                continue
            if last == "magnitude_ema":
                value = 0.6 + value.abs()
            elif last == "freqs":
                value = value * model.synthesis.input.bandwidth / 2
            elif last == "transform":
                value = torch.tensor([[0.96, 0.28, 0.1], [-0.28, 0.96, -0.2], [0.0, 0.0, 1.0]])
            elif name.endswith("affine.bias") or ("affine" not in name and last == "weight"):
                value = 1 + value if last == "bias" else value * value.shape[-1] ** 0.5
            stored.copy_(value)
    return model.eval().requires_grad_(False)


def arguments(g: Any) -> tuple[Tensor, Tensor]:
    return tensor("z", (2, g.z_dim)), torch.eye(2, g.c_dim).flip(0)


def images(g: Any) -> Tensor:
    """Two images a truncation."""
    z, c = arguments(g)
    with torch.no_grad():
        made = [g(z, c), g(z, c, truncation_psi=0.6), g(z, c, 0.3, truncation_cutoff=2)]
    return torch.stack(made)


def made(**config: Any) -> Generator:
    """A small generator with nothing left at its initial value."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        g = Generator(**{"z_dim": 10, "w_dim": 14, "img_resolution": 32, **SMALL, **config})
        g = g.eval().requires_grad_(False)
        for name, p in g.named_parameters():
            if name.endswith("bias"):
                p.add_(0.2 * torch.randn_like(p))
        g.mapping.w_avg.normal_(0, 0.5)
        synthesis: Any = g.synthesis
        for name in synthesis.layer_names:
            getattr(synthesis, name).magnitude_ema.uniform_(0.5, 1.5)
    return g


def by_class(g: Generator, *, features: tuple[int, int] = (7, 6), up: bool = False) -> Generator:
    """The generator ``g`` in the form of StyleGAN-XL's."""
    mapping: Any = g.mapping
    size = mapping.z_dim
    mapping.embed = nn.Embedding(*features)
    if mapping.c_dim:
        mapping.embed_proj = architecture.FullyConnectedLayer(features[1], size, "lrelu")
        mapping.fc0 = architecture.FullyConnectedLayer(2 * size, mapping.w_dim, "lrelu", 0.01)
        mapping.w_avg = torch.randn(mapping.c_dim, mapping.w_dim)
    if up:
        g.__class__ = architecture.SuperresGenerator
    return g.eval().requires_grad_(False)


class _Persistent(nn.Module):
    text = ""
    name = ""

    def __reduce__(self) -> Any:
        state = {"_init_args": (), "_init_kwargs": {}, **vars(self)}
        meta = {"type": "class", "version": 6, "module_src": self.text}
        meta |= {"class_name": self.name, "state": state}
        return _reconstruct_persistent_obj, (meta,)


def _reconstruct_persistent_obj(meta: Any) -> Any:
    raise AssertionError("nothing in a file runs")


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"


def official(module: nn.Module, text: str) -> Any:
    """``module`` in the official layout (tensors shared), with the attributes it has there."""
    kind = type(module).__name__
    twin: Any = _Persistent()
    twin.__dict__ |= {k: v for k, v in vars(module).items() if k not in vars(nn.Module())}
    inside: Any = module
    for name, value in inside._parameters.items():
        twin.register_parameter(name, value)
    for name, value in inside._buffers.items():
        twin.register_buffer(name, value)
    for name, child in inside._modules.items():
        if name == "conv" and kind == "SynthesisInput":
            twin.weight = nn.Parameter(child.weight[:, :, 0, 0].detach(), requires_grad=False)
        elif name in ("conv", "demod"):
            conv = child if name == "conv" else child.conv
            twin.weight = conv.weight
            twin.bias = conv.bias if name == "conv" else inside.bias
        else:
            setattr(twin, name, child if type(child) is nn.Embedding else official(child, text))
    for ours in ("side", "scale"):
        vars(twin).pop(ours, None)
    if kind == "SynthesisInput":
        twin.size = np.broadcast_to(np.asarray(inside.side), [2])
        twin.sampling_rate = np.float64(inside.sampling_rate)
        twin.bandwidth = np.float64(inside.bandwidth)
    elif kind == "SynthesisLayer":
        twin.in_channels, twin.out_channels = inside.in_channels, inside.out_channels
        twin.use_fp16, twin.in_cutoff = np.bool_(False), np.float64(2.0)
    elif kind == "FullyConnectedLayer":
        twin.weight_gain = inside.bias_gain / np.sqrt(inside.in_features)
    elif kind == "MappingNetwork" and "embed_proj" not in inside._modules:
        vars(twin)["embed_proj"] = None
    twin.__class__ = type(kind, (_Persistent,), {"text": text, "name": kind})
    return twin.eval()


def official_file(path: Path, layout: nn.Module, **more: Any) -> Path:
    """Write a file as the official code does, from a module of :func:`official`."""
    persistence: Any = types.ModuleType("torch_utils.persistence")
    persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj
    names = {"torch_utils": types.ModuleType("torch_utils"), persistence.__name__: persistence}
    with mock.patch.dict(sys.modules, names), path.open("wb") as file:
        data = {"G": layout, "D": nn.Module(), "G_ema": layout, **more}
        pickle.dump({**data, "training_set_kwargs": {"path": "x.zip"}}, file)
    return path
