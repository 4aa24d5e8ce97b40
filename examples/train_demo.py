r"""Make the weights of the demo's generator, examples/demo.safetensors.

    python examples/face_pictures.py emoji256.zip faces.zip
    python examples/train_demo.py --data faces.zip --out examples/demo.safetensors

A dense generator of the official architecture, in two stages:

1. regression: each latent is given one of the pictures, and the generator learns to draw it. On a
   CPU a generator so learns in minutes what hours of a game against a discriminator teach it:
   where a face is, and its colours. It is as blurred as any mean of pictures;
2. training against a projected discriminator on the pictures (``dsconvert.train.finetune``).

FD-lite0 to the pictures is printed after each stage, and the better one is written: half precision,
each weight once (the official file holds a spectrally normalised one twice). The same command
continues a run that was interrupted. With ``--cfg stylegan2`` the architecture is StyleGAN2's, and
the file is a safetensors export, which every command of dsconvert reads.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from dsconvert_adapters.projected_gan import Generator
from dsconvert_adapters.projected_gan.architecture import settle_spectral_norm
from safetensors.torch import save_file
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from dsconvert import export_model, load_snapshot, new_snapshot, save_snapshot
from dsconvert.data.stream import to_range
from dsconvert.metrics import LiteFeatures, frechet_distance, sample_images
from dsconvert.model.inputs import sampler_of
from dsconvert.train import NewGenerator, TrainConfig, finetune, new_generator, open_images, resume
from dsconvert.util.allocator import keep_freed_memory

CPU = torch.device("cpu")
DIRECTIONS = 6
"""Of the latents, that the regression gives a meaning; 65 pictures have no use for many."""
ROUND, BATCH = 64, 16
"""Latents matched at once, and of one step."""


def stored(generator: nn.Module) -> dict[str, Tensor]:
    """Return the state dict without the tensors that spectral normalisation computes."""
    state = generator.state_dict()
    return {
        name: value.half() if value.is_floating_point() else value
        for name, value in state.items()
        if f"{name}_orig" not in state
    }


class Assignment:
    """Pairs of latents and pictures (N, 3, H, W): the same parts of the latent space, always.

    The pictures' first principal components and as many directions of the latents are matched,
    batch by batch, so that the sum of the squared distances is least (the Hungarian method).
    Nothing of a latent but those directions has a meaning at first: the first layer's kernel reads
    them alone.
    """

    def __init__(self, pictures: Tensor, z_dim: int) -> None:
        flat = F.avg_pool2d(pictures, 4).flatten(1)
        left = torch.linalg.svd(flat - flat.mean(0), full_matrices=False).U
        self._codes = left[:, :DIRECTIONS] * len(pictures) ** 0.5
        self.directions = torch.linalg.qr(torch.randn(z_dim, DIRECTIONS)).Q

    @torch.no_grad()
    def confine(self, generator: Any) -> None:
        """Let the first layer of ``generator`` read the directions alone."""
        onto = self.directions @ self.directions.t()
        if isinstance(generator, Generator):
            kernel = generator.synthesis.init.init[0].weight_orig  # (z_dim, O, 4, 4)
            kernel.copy_(torch.einsum("zy,yohw->zohw", onto, kernel))
        else:
            weight = generator.mapping.fc0.weight  # (O, z_dim)
            weight.copy_(weight @ onto)

    def draw(self, count: int) -> list[tuple[Tensor, int]]:
        """Return latents (z_dim,), each with the index of its picture."""
        latents = torch.randn(count, len(self.directions))
        chosen = torch.randperm(len(self._codes))[:count]
        places = latents * latents.square().mean(1, keepdim=True).rsqrt() @ self.directions
        far = torch.cdist(places, self._codes[chosen]).square()
        rows, columns = linear_sum_assignment(far.numpy())
        return [(latents[r], int(chosen[c])) for r, c in zip(rows, columns, strict=True)]


def difference(made: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean absolute difference at four sizes: edges count, and where things are."""
    return torch.stack(
        [(F.avg_pool2d(made, k) - F.avg_pool2d(wanted, k)).abs().mean() for k in (1, 2, 4, 8)]
    ).sum()


def regressed(pictures: Tensor, options: argparse.Namespace) -> Path:
    """Return the official file of stage 1; make it if it is missing."""
    target: Path = options.run / "regressed.pkl"
    if target.exists():
        return target
    torch.manual_seed(options.seed)
    wanted = NewGenerator(
        cfg=options.cfg, resolution=options.resolution, ngf=options.ngf, z_dim=options.z_dim
    )
    student: Any = new_generator(wanted, seed=options.seed)[0]
    student.train().requires_grad_(True).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(student.parameters(), lr=2e-3, betas=(0.9, 0.99))
    both = torch.cat([pictures, pictures.flip(3)])
    none = torch.zeros(BATCH, 0)
    assignment = Assignment(both, student.z_dim)
    assignment.confine(student)
    began, steps, last = time.process_time(), 0, float("nan")
    while time.process_time() - began < 60 * options.minutes:
        pairs = assignment.draw(ROUND)
        for i in range(0, len(pairs), BATCH):
            part = pairs[i : i + BATCH]
            made = student(torch.stack([z for z, _ in part]), none[: len(part)])
            loss = difference(made, both[[k for _, k in part]])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            steps, last = steps + 1, float(loss.detach())
    print(f"regression: {steps} steps of {BATCH} in {options.minutes:g} minutes; loss {last:.2f}")
    student.eval().requires_grad_(False)
    if isinstance(student, Generator):
        settle_spectral_norm(student)
    save_snapshot(new_snapshot(student), {"G": copy.deepcopy(student), "G_ema": student}, target)
    return target


def trained_on(start: Path, options: argparse.Namespace) -> tuple[Path, int]:
    """Run stage 2; return its newest snapshot, and the number of images it was shown."""
    folder = options.run / "adversarial"
    config = TrainConfig(
        kimg=options.kimg, batch=8, mirror=True, tick_kimg=0.1, snapshot_ticks=5, keep_last=0,
        ema_rampup=None, ema_kimg=0.2, channels_last=True, seed=options.seed,
        precision=options.precision, lr_generator=options.lr, lr_discriminator=options.lr_d,
    )  # fmt: skip
    if (folder / "settings.json").is_file():
        done = resume(folder, kimg=options.kimg)
    else:
        done = finetune(start, config, data=options.data, out=options.run, name=folder.name)
    if done.result.interrupted:
        raise SystemExit(f"stopped after {done.result.images} images; the same command goes on")
    print(f"trained on: {done.result.images} images")
    return max((folder / "snapshots").glob("*.pkl")), done.result.images


def distance_to(pictures: Tensor, generator: nn.Module) -> float:
    """Return FD-lite0 between the pictures and as many images of the generator."""
    net = LiteFeatures()
    made = sample_images(generator, sampler_of(generator), samples=len(pictures), seed=1)
    return frechet_distance(net(made), net(pictures))


def main() -> None:
    """Train both stages and write the better one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder or zip of images")
    add("--out", type=Path, required=True)
    add("--run", type=Path, default=Path("runs/demo"), help="folder for checkpoints")
    add("--cfg", default="fastgan", choices=("fastgan", "stylegan2"))
    add("--resolution", type=int, default=128)
    add("--ngf", type=int, default=16)
    add("--z-dim", type=int)
    add("--lr", type=float, help="of the generator, in the second stage")
    add("--lr-d", type=float, help="of the discriminator")
    add("--precision", default="fp32", help="of the second stage")
    add("--minutes", type=float, default=12.0, help="of the processor, for the regression")
    add("--kimg", type=float, default=8.0, help="length of adversarial training")
    add("--seed", type=int, default=0)
    options = parser.parse_args()
    keep_freed_memory()  # as the command line does
    options.run.mkdir(parents=True, exist_ok=True)
    images = open_images(options.data, resolution=options.resolution)
    pictures = to_range(torch.stack([images.image(i)[0] for i in range(len(images))]), CPU)
    found: dict[str, tuple[float, nn.Module]] = {}
    first = regressed(pictures, options)
    second, shown = trained_on(first, options)
    for stage, path in (("regression", first), ("training", second)):
        generator = load_snapshot(path).generator
        found[stage] = distance_to(pictures, generator), generator
        print(f"FD-lite0 to the {len(pictures)} pictures after {stage}: {found[stage][0]:.1f}")
    stage, (distance, generator) = min(found.items(), key=lambda item: item[1][0])
    made = (
        f"examples/train_demo.py: {options.minutes:g} minutes of regression and "
        f"{shown / 1000:.1f} kimg of adversarial training on {len(pictures)} pictures of "
        f"{options.data.name}; kept: after {stage}; FD-lite0 to the pictures {distance:.1f}"
    )
    if isinstance(generator, Generator):
        facts = {"ngf": str(options.ngf), "resolution": str(options.resolution), "made": made}
        save_file(stored(generator), options.out, facts)
    else:
        export_model(generator.half(), options.out, overwrite=True)
    print(f"wrote {options.out} ({options.out.stat().st_size / 1e6:.1f} MB): {made}")


if __name__ == "__main__":
    main()
