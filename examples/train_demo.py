r"""Make the weights of the demo's generator, examples/demo.safetensors.

    python examples/train_demo.py --teacher stamps-128-ngf32.pkl --data stamps128.zip \
        --out examples/demo.safetensors

A dense FastGAN of the official architecture, half as wide as its teacher (ngf 16 of 32), in two
stages, both by dsconvert's own loops:

1. distillation from the teacher (``dsconvert.distill``), from the half of its channels with the
   largest energy: latents cost nothing, and per minute of a CPU the teacher's pictures give more
   information than a discriminator with random weights;
2. training against a projected discriminator on the images themselves (``finetune``).

FD-lite0 to the images is printed after each stage, and the better one is written: half precision,
each weight once (the official file holds a spectrally normalised one twice).

The images are those of Debian's package tuxpaint-stamps-default (objects on white, 473 of them);
the package's licence, the GPL-2, allows training on them. The teacher was trained on the same
images with the official code. The same command continues a run that was interrupted.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from dsconvert_adapters.projected_gan import Generator
from dsconvert_adapters.projected_gan.architecture import settle_spectral_norm
from safetensors.torch import save_file
from torch import Tensor, nn

from dsconvert import load_snapshot, new_snapshot, save_snapshot
from dsconvert.data.stream import to_range
from dsconvert.distill import DistillConfig, distill
from dsconvert.metrics import LiteFeatures, frechet_distance, sample_images
from dsconvert.model.inputs import sampler_of
from dsconvert.runs.folder import RunFolder
from dsconvert.train import ImageSet, TrainConfig, finetune, open_images, resume
from dsconvert.util.allocator import keep_freed_memory

CPU = torch.device("cpu")


@torch.no_grad()
def narrowed(teacher: nn.Module, ngf: int) -> Generator:
    """Return a generator of width ``ngf`` with the teacher's channels of largest energy.

    A gated unit connects row i of the convolution and normalisation before it to row i + C; the
    next convolution, and every gate, keeps the columns of the channels that remain.
    """
    student = Generator.from_config(resolution=128, ngf=ngf, z_dim=int(teacher.z_dim))
    state = teacher.state_dict()
    own = student.state_dict()
    energy_of = energies(teacher)

    def put(name: str, rows: Tensor | None, columns: Tensor | None) -> None:
        layer = teacher.get_submodule(name)
        first = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
        for key in [k for k in own if k.rpartition(".")[0] == name]:
            # The normalised kernel takes the place of the raw one: sigma is about 1 for it.
            value = layer.weight if key.endswith("weight_orig") else state[key]
            if rows is not None and value.dim():
                value = value.index_select(first if value.dim() > 1 else 0, rows)
            if columns is not None and value.dim() > 1:
                value = value.index_select(1 - first, columns)
            if value.shape == own[key].shape:  # not the power iteration's vectors
                own[key].copy_(value)

    def unit(name: str, at: int, columns: Tensor | None) -> Tensor:
        """Copy convolution ``at`` and its normalisation; return the channels that are kept."""
        norm, glu = (1, 2) if name.endswith("init") else (at + 2, at + 3)
        energy = energy_of[f"{name}.{glu}"]
        width = own[f"{name}.{norm}.weight"].numel() // 2
        kept = energy.topk(width).indices.sort().values
        both = torch.cat([kept, kept + energy.numel()])
        put(f"{name}.{at}", both, columns)
        put(f"{name}.{norm}", both, None)
        if norm > 1:
            put(f"{name}.{at + 1}", None, None)  # noise
        return kept

    kept = {4: unit("synthesis.init.init", 0, None)}
    for low in (4, 8, 16, 32, 64):
        inner = unit(f"synthesis.feat_{2 * low}", 1, kept[low])
        kept[2 * low] = unit(f"synthesis.feat_{2 * low}", 5, inner)
    for low in (4, 8):
        gate = f"synthesis.se_{16 * low}.main"
        put(f"{gate}.1", kept[16 * low], kept[low])
        put(f"{gate}.3", kept[16 * low], kept[16 * low])
    put("synthesis.to_big", None, kept[128])
    student.load_state_dict(own)
    settle_spectral_norm(student)
    return student


def energies(teacher: nn.Module) -> dict[str, Tensor]:
    """Return the mean square of every channel behind a gated unit, over 64 latents."""
    found: dict[str, Tensor] = {}

    def listen(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            found[name] = output.square().mean((0, 2, 3))

        return hook

    handles = [
        m.register_forward_hook(listen(n))
        for n, m in teacher.named_modules()
        if type(m).__name__ == "GLU"
    ]
    teacher(*sampler_of(teacher)(64, torch.Generator().manual_seed(0)))
    for handle in handles:
        handle.remove()
    return found


def stored(generator: nn.Module) -> dict[str, Tensor]:
    """Return the state dict without the tensors that spectral normalisation computes."""
    state = generator.state_dict()
    return {
        name: value.half() if value.is_floating_point() else value
        for name, value in state.items()
        if f"{name}_orig" not in state
    }


def distilled(options: argparse.Namespace) -> Path:
    """Return the official file of stage 1; make it if it is missing."""
    target: Path = options.run / "distilled.pkl"
    if target.exists():
        return target
    teacher = load_snapshot(options.teacher).generator
    torch.manual_seed(options.seed)
    student = narrowed(teacher, options.ngf)
    folder = options.run / "distill"
    done = distill(
        teacher,
        student,
        sampler_of(teacher),
        # Half of the channels are gone, so batch statistics change: they follow the batches.
        config=DistillConfig(
            minutes=options.minutes, clock="cpu", statistics="batch", seed=options.seed
        ),
        folder=folder,
        resume=bool(RunFolder.of_distillation(folder).checkpoints()),
    )
    print(
        f"distilled: {done.steps} steps in {done.seconds / 60:.1f} minutes; held-out PSNR "
        f"{done.before.psnr:.1f} -> {done.after.psnr:.1f} dB"
    )
    save_snapshot(new_snapshot(done.student), done.student, target)
    return target


def trained_on(start: Path, options: argparse.Namespace) -> Path:
    """Run stage 2; return its newest snapshot."""
    folder = options.run / "adversarial"
    config = TrainConfig(
        kimg=options.kimg, batch=8, mirror=True, tick_kimg=0.1, snapshot_ticks=5, keep_last=0,
        ema_rampup=None, ema_kimg=0.2, channels_last=True, seed=options.seed,
    )  # fmt: skip
    if (folder / "settings.json").is_file():
        done = resume(folder, kimg=options.kimg)
    else:
        done = finetune(start, config, data=options.data, out=options.run, name=folder.name)
    print(f"trained on: {done.result.images} images")
    return max((folder / "snapshots").glob("*.pkl"))


def distance_to(images: ImageSet, count: int, generator: nn.Module) -> float:
    """Return FD-lite0 between ``count`` of the images and as many of the generator's."""
    net = LiteFeatures()
    reals = torch.stack([images.image(i)[0] for i in range(count)])
    made = sample_images(generator, sampler_of(generator), samples=count, seed=1)
    return frechet_distance(net(made), net(to_range(reals, CPU)))


def main() -> None:
    """Train both stages and write the better one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--teacher", type=Path, required=True, help="official snapshot, 128 px")
    add("--data", type=Path, required=True, help="folder or zip of images")
    add("--out", type=Path, required=True)
    add("--run", type=Path, default=Path("runs/demo"), help="folder for checkpoints")
    add("--ngf", type=int, default=16)
    add("--minutes", type=float, default=20.0, help="minutes of distillation")
    add("--kimg", type=float, default=0.4, help="length of adversarial training")
    add("--samples", type=int, help="images a side of FD-lite0 (all)")
    add("--seed", type=int, default=0)
    options = parser.parse_args()
    keep_freed_memory()  # as the command line does
    options.run.mkdir(parents=True, exist_ok=True)
    images = open_images(options.data, resolution=128)
    count = options.samples or len(images)
    teacher = distance_to(images, count, load_snapshot(options.teacher).generator)
    print(f"FD-lite0 to {count} images: teacher {teacher:.1f}")
    first = distilled(options)
    found: dict[str, tuple[float, Generator]] = {}
    for stage, path in (("distilled", first), ("trained on", trained_on(first, options))):
        generator = load_snapshot(path).generator
        found[stage] = distance_to(images, count, generator), generator
        print(f"FD-lite0 to {count} images: {stage} {found[stage][0]:.1f}")
    stage, (distance, generator) = min(found.items(), key=lambda item: item[1][0])
    facts = {
        "ngf": str(options.ngf),
        "resolution": "128",
        "made": (
            f"examples/train_demo.py: distilled for {options.minutes:g} minutes from "
            f"{options.teacher.name}, then trained on {options.data.name}; kept: {stage}; "
            f"FD-lite0 to the images {distance:.1f} (teacher {teacher:.1f})"
        ),
    }
    save_file(stored(generator), options.out, facts)
    print(f"wrote {options.out} ({options.out.stat().st_size / 1e6:.1f} MB): {facts['made']}")


if __name__ == "__main__":
    main()
