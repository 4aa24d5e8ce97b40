"""Write ``NAME.json`` anew: ``python -m tests.adapters.originals.make NAME ROOT``.

``ROOT`` is a checkout of the original code. Nothing in the project imports this module.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from tests.adapters.originals import HERE, filled, some, tensor
from tests.adapters.stylegan3_files import RADIAL, SMALL, fill, images

Case = dict[str, Any]


def _case(model: Any, arguments: Callable[[], tuple[Any, ...]], **more: Any) -> Case:
    shapes = {k: list(v.shape) for k, v in model.state_dict().items()}
    model.load_state_dict(filled(shapes), strict=True)
    model.eval()
    with torch.no_grad():
        output = model(*arguments())
    return {**more, "shapes": shapes, "output_shape": list(output.shape), "output": some(output)}


def biggan_pytorch() -> dict[str, Case]:
    """ajbrock/BigGAN-PyTorch."""
    from importlib import import_module

    plain, deep = import_module("BigGAN"), import_module("BigGANdeep")
    small = {"resolution": 32, "n_classes": 5, "G_attn": "0", "no_optim": True, "skip_init": True}
    cases: dict[str, tuple[Any, dict[str, Any]]] = {
        "BigGAN": (plain, {"dim_z": 20, "shared_dim": 12, "hier": True, "G_attn": "16"}),
        "no shared embedding": (plain, {"dim_z": 16, "G_shared": False}),
        "mybn": (plain, {"dim_z": 12, "shared_dim": 8, "mybn": True, "num_G_SVs": 2}),
        "cross_replica": (
            plain,
            {"dim_z": 20, "shared_dim": 8, "hier": True, "cross_replica": True, "G_param": "none"},
        ),
        "BigGANdeep": (
            deep,
            {"dim_z": 12, "shared_dim": 8, "hier": True, "G_attn": "16", "G_ch": 8},
        ),
    }
    made: dict[str, Case] = {}
    for name, (code, options) in cases.items():
        g = code.Generator(**{"G_ch": 4, **small, **options})
        z, classes = tensor("z", (2, g.dim_z)), torch.tensor([1, 3])
        made[name] = _case(g, lambda g=g, z=z, c=classes: (z, g.shared(c)), dim_z=g.dim_z)
    return made


def pretrained_biggan() -> dict[str, Case]:
    """PyPI's pytorch-pretrained-biggan, without the packages that it downloads with."""
    absent = ("boto3", "botocore", "botocore.exceptions", "requests", "tqdm")
    with mock.patch.dict(sys.modules, {n: mock.MagicMock() for n in absent}):
        from importlib import import_module

        code = import_module("pytorch_pretrained_biggan.model")
        config = import_module("pytorch_pretrained_biggan.config").BigGANConfig(
            output_dim=32, z_dim=8, class_embed_dim=8, channel_width=8, num_classes=5,
            layers=[[False, 16, 16], [True, 16, 8], [True, 8, 4], [False, 4, 2], [True, 2, 1]],
            attention_layer_position=3, eps=1e-4, n_stats=11,
        )  # fmt: skip
        g = code.BigGAN(config)
        z, c = tensor("z", (2, 8)), torch.eye(5)[[1, 3]]
        made = _case(g, lambda: (z, c, 0.43), settings=config.to_dict())
        with torch.no_grad():
            made["whole"] = some(g(z, c, 1.0))
        return {"BigGAN-deep": made}


def hifigan() -> dict[str, Case]:
    """jik876/hifi-gan."""
    from importlib import import_module

    with mock.patch.dict(sys.modules, {"utils": _hifigan_utils()}):
        code = import_module("models")
    kinds = {
        "resblock 1": ("1", [4, 2], [8, 4], [3, 7], [[1, 3, 5], [1, 3, 5]]),
        "resblock 2": ("2", [4, 2], [8, 4], [3, 5], [[1, 2], [2, 6]]),
    }
    made: dict[str, Case] = {}
    for name, (block, rates, kernels, sizes, dilations) in kinds.items():
        settings = {
            "resblock": block, "upsample_rates": rates, "upsample_kernel_sizes": kernels,
            "upsample_initial_channel": 16, "resblock_kernel_sizes": sizes,
            "resblock_dilation_sizes": dilations, "num_mels": 80, "n_fft": 64, "hop_size": 8,
            "win_size": 64, "sampling_rate": 22050, "fmin": 0, "fmax": 8000,
        }  # fmt: skip
        g = code.Generator(SimpleNamespace(**settings))
        mel = tensor("mel", (2, 80, 12))
        made[name] = _case(g, lambda mel=mel: (mel,), settings=settings)
    return made


def _hifigan_utils() -> Any:
    """The two functions of its ``utils`` that the generator needs; the rest imports matplotlib."""
    return SimpleNamespace(
        init_weights=lambda *_: None,
        get_padding=lambda kernel, dilation=1: (kernel - 1) * dilation // 2,
    )


def stylegan3() -> dict[str, Case]:
    """NVlabs/stylegan3."""
    from importlib import import_module

    code = import_module("training.networks_stylegan3")
    plain = {"img_resolution": 32, **SMALL}
    return {
        "-t": _stylegan3(code.Generator, plain),
        "-t, classes": _stylegan3(code.Generator, {**plain, "classes": 3, "conv_clamp": 1}),
        "-r": _stylegan3(code.Generator, {**plain, **RADIAL}),
        "-r, classes": _stylegan3(code.Generator, {**plain, **RADIAL, "classes": 3}),
    }


def stylegan_xl() -> dict[str, Case]:
    """autonomousvision/stylegan-xl; run it inside of the checkout."""
    from importlib import import_module

    code = import_module("training.networks_stylegan3_resetting")
    plain = {"img_resolution": 16, "conv_kernel": 3, "use_radial_filters": False, **SMALL}
    return {
        "-t, classes": _stylegan3(code.Generator, {**plain, "classes": 3}),
        "-r": _stylegan3(code.Generator, {**plain, **RADIAL}),
    }


def _stylegan3(kind: Any, options: dict[str, Any]) -> Case:
    given = {k: v for k, v in options.items() if k != "classes"}
    g = fill(kind(10, options.get("classes", 0), 14, img_channels=3, **given))
    output = images(g)
    return {"options": options, "output_shape": list(output.shape), "output": some(output)}


if __name__ == "__main__":
    name, root = sys.argv[1:]
    sys.path.insert(0, root)
    with redirect_stdout(sys.stderr):
        cases = globals()[name]()
    Path(HERE / f"{name}.json").write_text(
        json.dumps(cases, separators=(",", ":")) + "\n", encoding="utf-8"
    )
