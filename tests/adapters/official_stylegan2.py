"""Runs inside a checkout of an official repository; dsconvert can't be imported there.

``make ROOT MODULE OUT JSON``: a small file of that code, and ``OUT.pt`` with its images.
``load ROOT FILE OUT``: the images of a file, by the checkout's own ``legacy.load_network_pkl``.
"""

from __future__ import annotations

import importlib
import io
import json
import pickle
import sys
from typing import Any

import torch

CASES = ((1.0, None, "const"), (0.7, None, "none"), (0.5, 2, "random"))


class _Blocked:
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.split(".")[0].startswith("dsconvert"):
            raise ImportError(f"{name} is not installed here")


def images(g: Any, z: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    made = []
    with torch.no_grad():
        for psi, cut, mode in CASES:
            torch.manual_seed(1)
            options = {"truncation_psi": psi, "truncation_cutoff": cut, "noise_mode": mode}
            made.append(g(z, c, force_fp32=True, **options))
    return torch.stack(made)


def make(root: str, module: str, out: str, options: str) -> None:
    given: dict[str, Any] = json.loads(options)
    code = importlib.import_module(module)
    torch.manual_seed(0)
    classes, extra = given.pop("classes", 0), given.pop("extra", False)
    synthesis = {"channel_base": 512, "channel_max": 24, "num_fp16_res": 0, **given}
    nested = module == "training.networks"  # StyleGAN2-ADA
    g = code.Generator(
        24, classes, 32, 32, 3, mapping_kwargs={"num_layers": 3},
        **({"synthesis_kwargs": synthesis} if nested else synthesis),
    )  # fmt: skip
    g = g.eval().requires_grad_(False)
    for name, p in g.named_parameters():
        if name.endswith("noise_strength"):
            p.fill_(0.3)
        elif name.endswith("bias"):
            p.add_(0.2 * torch.randn_like(p))
    g.mapping.w_avg.normal_()
    data: dict[str, Any] = {"G": g, "D": torch.nn.Module(), "G_ema": g}
    if extra:
        data["D"] = code.Discriminator(classes, 32, 3, channel_base=512, channel_max=16).eval()
        pipe = importlib.import_module("training.augment").AugmentPipe(xflip=1)
        data["augment_pipe"] = pipe.eval()
    data["training_set_kwargs"] = importlib.import_module("dnnlib").EasyDict(path="x.zip")
    with open(out, "wb") as file:  # noqa: PTH123
        pickle.dump(data, file)
    z, c = torch.randn(2, 24), torch.eye(2, classes)
    torch.save({"z": z, "c": c, "images": images(g, z, c)}, out + ".pt")


def load(root: str, file: str, inputs: str, out: str) -> None:
    legacy = importlib.import_module("legacy")
    with open(file, "rb") as stream:  # noqa: PTH123
        data = legacy.load_network_pkl(stream)
    given = torch.load(inputs, weights_only=True)
    g = data["G_ema"].eval()
    torch.save(images(g, given["z"], given["c"]), out)
    # The official tools pickle what they have loaded (training resumes, metrics copy).
    again = io.BytesIO()
    pickle.dump(data, again)
    assert not any(name.startswith("dsconvert") for name in sys.modules)


if __name__ == "__main__":
    sys.meta_path.insert(0, _Blocked())  # type: ignore[arg-type]
    sys.path.insert(0, sys.argv[2])
    {"make": make, "load": load}[sys.argv[1]](*sys.argv[2:])
