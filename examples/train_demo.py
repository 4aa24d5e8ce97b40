r"""Make the weights of the demo's generator, examples/demo.safetensors.

    python examples/train_demo.py --teacher stamps-128-ngf32.pkl --data stamps128.zip \
        --out examples/demo.safetensors

A dense FastGAN of the official architecture, narrower than its teacher (ngf 12 of 32), in two
stages, both by dsconvert's own loops:

1. distilled from the teacher (``dsconvert.train.distill``): latents are free, and the teacher's
   pictures say more per minute of a CPU than a discriminator that begins from nothing;
2. trained on against a projected discriminator on the images themselves (``finetune``).

FD-lite0 to the images is printed after each stage, and the better one is written: half precision,
each weight once (the official file holds a spectrally normalised one twice).

The images are those of Debian's package tuxpaint-stamps-default (objects on white, 473 of them);
the package's licence, the GPL-2, allows training on them. The teacher was trained on the same
images with the official code. A run that was cut short goes on from its checkpoints: run it again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from dsconvert_adapters.projected_gan import Generator
from safetensors.torch import save_file
from torch import nn

from dsconvert import load_snapshot, new_snapshot, save_snapshot
from dsconvert.allocator import keep_freed_memory
from dsconvert.inputs import sampler_of
from dsconvert.metrics import LiteFeatures, frechet_distance, sample_images
from dsconvert.train import ImageSet, TrainConfig, finetune, open_images, resume
from dsconvert.train.checkpoint import checkpoints
from dsconvert.train.distill import distill
from dsconvert.train.distill_config import DistillConfig
from dsconvert.train.stream import to_range

CPU = torch.device("cpu")


def stored(generator: nn.Module) -> dict[str, torch.Tensor]:
    """What the file holds: the state without what spectral normalisation computes from the rest."""
    state = generator.state_dict()
    return {
        name: value.half() if value.is_floating_point() else value
        for name, value in state.items()
        if f"{name}_orig" not in state
    }


def distilled(options: argparse.Namespace) -> Path:
    """Stage 1, as an official file."""
    target: Path = options.run / "distilled.pkl"
    if target.exists():
        return target
    teacher = load_snapshot(options.teacher).generator
    torch.manual_seed(options.seed)
    student = Generator.from_config(resolution=128, ngf=options.ngf, z_dim=256)
    folder = options.run / "distill"
    done = distill(
        teacher,
        student,
        sampler_of(teacher),
        # A new generator has no statistics worth keeping, and far to go: they follow the batches.
        config=DistillConfig(
            minutes=options.minutes, clock="cpu", statistics="batch", seed=options.seed
        ),
        folder=folder,
        resume=bool(checkpoints(folder)),
    )
    print(
        f"distilled: {done.steps} steps in {done.seconds / 60:.1f} minutes; held-out PSNR "
        f"{done.before.psnr:.1f} -> {done.after.psnr:.1f} dB"
    )
    save_snapshot(new_snapshot(done.student), done.student, target)
    return target


def trained_on(start: Path, options: argparse.Namespace) -> Path:
    """Stage 2: the newest snapshot of the adversarial run."""
    folder = options.run / "adversarial"
    config = TrainConfig(
        kimg=options.kimg, batch=8, mirror=True, tick_kimg=0.04, snapshot_ticks=5,
        ema_rampup=None, ema_kimg=0.1, channels_last=True, seed=options.seed,
    )  # fmt: skip
    if (folder / "settings.json").is_file():
        done = resume(folder, kimg=options.kimg)
    else:
        done = finetune(start, config, data=options.data, out=options.run, name=folder.name)
    print(f"trained on: {done.result.images} images")
    return max((folder / "snapshots").glob("*.pkl"))


def distance_to(images: ImageSet, count: int, generator: nn.Module) -> float:
    """FD-lite0 between ``count`` of the images and as many of the generator's."""
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
    add("--ngf", type=int, default=12)
    add("--minutes", type=float, default=20.0, help="of distillation")
    add("--kimg", type=float, default=0.4, help="of adversarial training")
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
