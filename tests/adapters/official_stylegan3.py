"""Runs inside a checkout of StyleGAN3 or StyleGAN-XL; dsconvert can't be imported there.

``make ROOT OUT JSON``: a small file of that code, and ``OUT.pt`` with its images.
``load ROOT FILE INPUTS OUT``: the images of a file, by the checkout's ``legacy.load_network_pkl``.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import pickle
import sys
from typing import Any

import torch

CASES = ((1.0, None, 0.0), (0.7, None, 0.3), (0.5, 2, 0.0))
"""Truncation, its cutoff, and an angle and a shift of the user's transform."""


class _Blocked:
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.split(".")[0].startswith("dsconvert"):
            raise ImportError(f"{name} is not installed here")


def images(g: Any, z: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    made = []
    with torch.no_grad():
        for psi, cut, turn in CASES:
            t = torch.tensor(turn)
            rows = [[t.cos(), t.sin(), t / 2], [-t.sin(), t.cos(), -t / 3], [0.0, 0.0, 1.0]]
            g.synthesis.input.transform.copy_(torch.tensor(rows))
            options = {"truncation_psi": psi, "truncation_cutoff": cut, "noise_mode": "const"}
            made.append(g(z, c, force_fp32=True, **options))
    return torch.stack(made)


def _moved(g: Any) -> Any:
    """Nothing at its initial value; magnitudes as the maps have them, as after training."""
    g = g.eval().requires_grad_(False)
    for name, p in g.named_parameters():
        if name.endswith("bias"):
            p.add_(0.2 * torch.randn_like(p))
    g.synthesis.input.affine.weight.normal_(0, 0.3)
    g.mapping.w_avg.normal_(0, 0.5)
    for name in g.synthesis.layer_names:
        getattr(g.synthesis, name).magnitude_ema_beta = 0.0
    if not hasattr(g.mapping, "embed_proj") or g.mapping.embed_proj is None:
        g.synthesis(g.mapping(torch.randn(4, g.z_dim), torch.eye(4, g.c_dim)), update_emas=True)
    for name in g.synthesis.layer_names:
        getattr(g.synthesis, name).magnitude_ema_beta = 0.999
    return g


def make(root: str, out: str, options: str) -> None:
    given: dict[str, Any] = json.loads(options)
    classes, module = given.pop("classes", 0), given.pop("module")
    extra, up = given.pop("extra", False), given.pop("up_factor", 0)
    os.chdir(root)  # StyleGAN-XL reads a file below its own folder
    code = importlib.import_module(module)
    torch.manual_seed(0)
    layers = {"channel_base": 256, "channel_max": 12, "num_layers": 6, "margin_size": 4, **given}
    size = layers.pop("img_resolution")
    g = _moved(code.Generator(10, classes, 14, size, 3, mapping_kwargs={"num_layers": 2}, **layers))
    if up:
        stem = out + ".stem"
        with open(stem, "wb") as file:  # noqa: PTH123
            pickle.dump({"G": g, "D": g, "G_ema": g}, file)
        g = _moved(code.SuperresGenerator(size * up, stem, 4, up))
    data: dict[str, Any] = {"G": g, "D": torch.nn.Module(), "G_ema": g}
    if extra:
        nets = importlib.import_module("training.networks_stylegan2")
        data["D"] = nets.Discriminator(classes, size, 3, channel_base=512, channel_max=16).eval()
        pipe = importlib.import_module("training.augment").AugmentPipe(xflip=1)
        data["augment_pipe"] = pipe.eval()
    data["training_set_kwargs"] = importlib.import_module("dnnlib").EasyDict(path="x.zip")
    with open(out, "wb") as file:  # noqa: PTH123
        pickle.dump(data, file)
    z, c = torch.randn(2, 10), torch.eye(2, classes)
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
