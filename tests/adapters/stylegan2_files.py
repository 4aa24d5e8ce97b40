"""Files in the layout of the official StyleGAN2 codebases, made from our generators.

The official classes keep kernel and noise in the layer itself; the text that such a file brings
along is whatever a test wants (never NVIDIA's).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from dsconvert_adapters.stylegan2 import Generator, StyleGan2, network
from torch import nn

from dsconvert.adapter import PERSISTENCE
from dsconvert.formats.official.dump import Dumper
from dsconvert.safepickle.nodes import DictNode, Node
from dsconvert.safepickle.write import write_file

NAMES = (
    "Generator", "MappingNetwork", "SynthesisNetwork", "SynthesisBlock", "SynthesisLayer",
    "ToRGBLayer", "Conv2dLayer", "FullyConnectedLayer",
)  # fmt: skip
LAYOUTS: dict[str, type[nn.Module]] = {name: type(name, (nn.Module,), {}) for name in NAMES}


class OfficialLayout(StyleGan2):
    """Writes the layout classes with a source text of the test's choice."""

    def __init__(self, text: str) -> None:
        self.text = text

    @property
    def classes(self) -> dict[tuple[str, str], type[nn.Module]]:
        return {(PERSISTENCE, name): kind for name, kind in LAYOUTS.items()}

    def source(self) -> str:
        return self.text


def made(**config: Any) -> Generator:
    """A small generator with nothing left at its initial value."""
    settings: dict[str, Any] = {
        "z_dim": 12, "w_dim": 16, "img_resolution": 16, "channel_base": 128, "channel_max": 10,
        "mapping_kwargs": {"num_layers": 2}, **config,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        g = Generator(**settings).eval().requires_grad_(False)
        for name, p in g.named_parameters():
            if name.endswith("noise.weight"):
                p.fill_(0.3)
            elif name.endswith("bias"):
                p.add_(0.2 * torch.randn_like(p))
        g.mapping.w_avg.normal_()
    return g


def official(module: nn.Module) -> nn.Module:
    """``module`` in the official layout (tensors shared)."""
    twin: Any = LAYOUTS[type(module).__name__]()
    inside: Any = module
    for name, value in vars(module).items():
        if name not in vars(nn.Module()):
            setattr(twin, name, value)
    for name, value in inside._parameters.items():
        twin.register_parameter(name, value)
    for name, value in inside._buffers.items():
        twin.register_buffer(name, value)
    for name, child in inside._modules.items():
        if isinstance(child, network.Noise):
            twin.noise_strength = child.weight
            twin.register_buffer("noise_const", child.noise_const)
        elif isinstance(child, network.Demodulation):
            weight = child.conv.weight
            if isinstance(child.conv, nn.ConvTranspose2d):
                weight = nn.Parameter(weight.transpose(0, 1).contiguous(), requires_grad=False)
            twin.weight = weight
        elif name == "conv":
            twin.weight = child.weight
            twin.register_parameter("bias", child.bias)
        else:
            setattr(twin, name, official(child))
    return twin.eval()


def official_file(path: Path, g: nn.Module, text: str = "official = True\n", **more: Any) -> Path:
    """An official-layout file of ``g``; further entries are modules (ours or layouts) or nodes."""
    dumper = Dumper(OfficialLayout(text))
    node = dumper.module(official(g), "G_ema")
    entries: dict[str, Node] = {"G": node, "D": nn.Module(), "G_ema": node, **more}
    pairs: list[tuple[Node, Node]] = [
        (k, dumper.module(v, k) if isinstance(v, nn.Module) else v) for k, v in entries.items()
    ]
    write_file(path, DictNode([*pairs, ("training_set_kwargs", None)]), None, overwrite=False)
    return path
