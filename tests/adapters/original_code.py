"""The networks of the original repositories, from checkouts; and the files made with them.

``ROSINALITY_ROOT`` names a checkout of rosinality/stylegan2-pytorch; ``CYCLEGAN_ROOT`` one of
junyanz/pytorch-CycleGAN-and-pix2pix or taesungp/contrastive-unpaired-translation (CUT).

``python -m tests.adapters.original_code`` writes ``tests/adapters/saved/``: state dicts of small
networks that the original code built with random weights, each with an input and the original's
output for it. The committed files were made with rosinality's commit bef283a and CUT's networks.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SAVED = Path(__file__).parent / "saved"
WIDTHS = {4: 8, 8: 6, 16: 4}
"""Channels of the small StyleGAN2; the original's numbers stand in its source text."""
NETWORKS: dict[str, dict[str, Any]] = {
    "cyclegan": {
        "netG": "resnet_6blocks", "norm": "instance",
        "no_antialias": True, "no_antialias_up": True,
    },
    "pix2pix": {"netG": "unet_128", "norm": "batch", "use_dropout": True},
    "cut": {"netG": "resnet_4blocks", "norm": "instance"},
}  # fmt: skip


def rosinality(root: str, widths: dict[int, int] | None = None) -> Any:
    """Import the original's ``model.py``, without compiling CUDA code: a CPU needs none.

    Args:
        root: the checkout.
        widths: other numbers of channels than the original's, by size.
    """
    import torch.utils.cpp_extension as extension

    real, names = extension.load, ("op", "op.fused_act", "op.upfirdn2d", "op.conv2d_gradfix")
    extension.load = lambda *_, **__: None  # type: ignore[assignment]
    sys.path.insert(0, root)
    try:
        text = (Path(root) / "model.py").read_text()
        for size, channels in (widths or {}).items():
            text = re.sub(rf"\b{size}: 512,", f"{size}: {channels},", text)
        module = types.ModuleType("rosinality_model")
        exec(compile(text, str(Path(root) / "model.py"), "exec"), module.__dict__)
    finally:
        sys.path.remove(root)
        extension.load = real
        for name in names:
            sys.modules.pop(name, None)
    return module


def image_to_image(root: str, **options: Any) -> nn.Module:
    """Build a generator by the original's ``define_G``; options that it lacks are left out."""
    name = "cyclegan_models"
    package = types.ModuleType(name)
    package.__path__ = [str(Path(root) / "models")]
    beside: Any = types.ModuleType(f"{name}.stylegan_networks")
    for kind in ("StyleGAN2Discriminator", "StyleGAN2Generator", "TileStyleGAN2Discriminator"):
        setattr(beside, kind, None)
    sys.modules |= {name: package, beside.__name__: beside}
    try:
        networks = importlib.import_module(f"{name}.networks")
    finally:
        for used in [n for n in sys.modules if n.split(".")[0] == name]:
            del sys.modules[used]
    known = inspect.signature(networks.define_G).parameters
    given = {k: v for k, v in options.items() if k in known}
    return networks.define_G(input_nc=3, output_nc=3, init_gain=0.3, **given).eval()


def moved(model: nn.Module) -> nn.Module:
    """Move everything that a new network has at zero or one."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name.endswith("noise.weight"):
            tensor.data.fill_(0.3)
        elif name.endswith("running_var"):
            tensor.data.uniform_(0.5, 1.5)
        elif name.endswith((".bias", "running_mean")):
            tensor.data.add_(0.1 * torch.randn_like(tensor))
    return model.eval().requires_grad_(False)


def every(step: int, images: Tensor) -> Tensor:
    """Return some pixels of images, which keep a file small."""
    return images[..., ::step, ::step].clone()


def main() -> None:
    SAVED.mkdir(exist_ok=True)
    torch.manual_seed(0)
    code = rosinality(os.environ["ROSINALITY_ROOT"], WIDTHS)
    g = moved(code.Generator(16, 8, 2))
    z = torch.randn(2, 8)
    entry = {
        "g_ema": g.state_dict(),
        "g": {k: v * 1.01 for k, v in g.state_dict().items()},
        "latent_avg": g.mean_latent(64)[0],
    }
    torch.save(entry, SAVED / "rosinality.pt")
    cases = {
        "stored noise": g([z], randomize_noise=False)[0],
        "truncated": g([z], randomize_noise=False, truncation=0.5,
                       truncation_latent=entry["latent_avg"])[0],
        "mixed": g([z, z.flip(0)], randomize_noise=False, inject_index=3)[0],
    }  # fmt: skip
    torch.save({"z": z, **cases}, SAVED / "rosinality.expected.pt")
    for name, options in NETWORKS.items():
        unet = "unet" in options["netG"]
        model = moved(image_to_image(os.environ["CYCLEGAN_ROOT"], ngf=1 if unet else 2, **options))
        torch.save(model.state_dict(), SAVED / f"{name}.pth")
        small = torch.rand(1, 3, 8, 8) * 2 - 1
        picture = nn.functional.interpolate(small, size=128 if unet else 32, mode="bilinear")
        expected = every(8 if unet else 2, model(picture))
        torch.save({"small": small, "image": expected}, SAVED / f"{name}.expected.pt")
        print(name, float(expected.std()))


if __name__ == "__main__":
    main()
