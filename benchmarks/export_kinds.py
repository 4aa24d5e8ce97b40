"""Small files of every codebase that dsconvert reads, for the matrix of exports.

The makers are those of the tests: random weights in the layouts of the originals, and the files
that the original code wrote. A file is made once in each of two forms: as the codebase writes it,
and converted (preset ``fast``, ranks from the kernels alone).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dsconvert_adapters import fastgan_pytorch, lightweight_gan  # noqa: E402

from dsconvert import ModuleSource, convert_file, open_file, save_file  # noqa: E402
from dsconvert.data.waveforms import write_wav  # noqa: E402
from dsconvert.formats.official import new_snapshot, save_snapshot  # noqa: E402
from tests.adapters import originals, stylegan2_files, stylegan3_files  # noqa: E402
from tests.adapters.original_code import SAVED  # noqa: E402
from tests.made_models import drifted, fastgan_content, moved, moved_generator  # noqa: E402
from tests.upscalers import picture_folder, upscaler  # noqa: E402


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of file.

    Attributes:
        write: writes a small one into a folder, and returns its path.
        module: the factory of ``--module``, for a state dict that no adapter knows.
        shape: of one latent, for ``--input``.
        values: the range of the pictures that a module reads, for ``--values``.
        data: writes pictures or sounds into a folder, for ``--calibration``; None: the generator
            reads latents.
        crop: of those.
        needs: packages that the file needs to be opened.
    """

    write: Callable[[Path], Path]
    module: str | None = None
    shape: tuple[int, ...] | None = None
    values: str | None = None
    data: Callable[[Path], Path] | None = None
    crop: int | None = None
    needs: tuple[str, ...] = ()

    @property
    def source(self) -> ModuleSource | None:
        """The module, as the library takes it."""
        if self.module is None:
            return None
        shapes = () if self.shape is None else (self.shape,)
        return ModuleSource(factory=self.module, shapes=shapes)

    def words(self) -> list[str]:
        """Return the options that every command needs for this kind."""
        words = [] if self.module is None else ["--module", self.module]
        return words if self.shape is None else [*words, "--input", ",".join(map(str, self.shape))]

    def calibration(self, folder: Path) -> list[str]:
        """Return the options that name pictures or sounds, which are in ``folder``."""
        if self.data is None:
            return []
        words = ["--calibration", str(folder), "--crop", str(self.crop)]
        return words if self.values is None else [*words, "--values", self.values]


class Latent(nn.Module):
    """A user's own generator, with a latent of 8 numbers, batch normalisation and 16 px."""

    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.ConvTranspose2d(8, 12, 4), nn.BatchNorm2d(12), nn.ReLU(),
            nn.Upsample(scale_factor=2), nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12),
            nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv2d(12, 3, 3, padding=1), nn.Tanh(),
        )  # fmt: skip

    def forward(self, z: Tensor) -> Tensor:
        """Images (N, 3, 16, 16), of latents (N, 8)."""
        return self.main(z[:, :, None, None])


def _saved(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def _official(**config: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        made = moved_generator(**{"resolution": 64, "ngf": 4, **config})
        save_snapshot(new_snapshot(made), made, folder / "generator.pkl")
        return folder / "generator.pkl"

    return write


def _plain(folder: Path) -> Path:
    file = open_file(_official()(folder))
    out = folder / "generator.safetensors"
    file.save_safetensors(file.generator, out, noise="random", overwrite=False)
    return out


def _stylegan2(folder: Path) -> Path:
    return stylegan2_files.official_file(folder / "generator.pkl", stylegan2_files.made())


def _stylegan3(**config: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        layout = stylegan3_files.official(stylegan3_files.made(**config), "official = True\n")
        return stylegan3_files.official_file(folder / "generator.pkl", layout)

    return write


def _fastgan(folder: Path) -> Path:
    raw = moved(fastgan_pytorch.Generator(ngf=4, nz=16, im_size=256))
    return _saved(fastgan_content(raw, drifted(raw)), folder / "all_7.pth")


def _lightweight(folder: Path) -> Path:
    config = {
        "latent_dim": 16, "channels": [16, 16, 16, 8, 8, 8], "out_channels": 3,
        "gates": {"1": "context"}, "attention": {"2": 1}, "antialias": True,
    }  # fmt: skip
    made = moved(lightweight_gan.ADAPTER.make(config))
    return _saved({"GAN": {f"GE.{k}": v for k, v in made.state_dict().items()}}, folder / "m.pt")


def _original(name: str, case: str, file: str, wrap: str | None = None) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = originals.written(folder, name, case, file, wrap)
        return originals.settled(path) if name == "pretrained_biggan" else path

    return write


def _committed(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes((SAVED / name).read_bytes())
        return folder / name

    return write


def _spandrel(suffix: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        from tests.adapters import spandrel_files as files

        if suffix == "safetensors":
            return files.written(files.compact().state_dict(), folder / "x2.safetensors")
        state = files.as_realesrgan(dict(files.rrdb().state_dict()))
        return files.written({"params_ema": state}, folder / "x4.pth")

    return write


def _latent(folder: Path) -> Path:
    return _saved(moved(Latent()).state_dict(), folder / "model.pth")


def _pictures(side: int) -> Callable[[Path], Path]:
    return lambda folder: picture_folder(folder, count=20, side=side)


def _sounds(folder: Path) -> Path:
    from tests.adapters.test_hifigan import voice

    folder.mkdir()
    for i in range(20):
        write_wav(voice(110 + 20 * i), folder / f"{i}.wav", rate=22050)
    return folder


KINDS: dict[str, Kind] = {
    "Projected GAN `fastgan`": Kind(write=_official()),
    "Projected GAN `fastgan_lite`": Kind(write=_official(cfg="fastgan_lite")),
    "Projected GAN, 3 classes": Kind(write=_official(classes=3)),
    "dsconvert's safetensors": Kind(write=_plain),
    "StyleGAN2 `.pkl`": Kind(write=_stylegan2),
    "StyleGAN3 `-t`": Kind(write=_stylegan3()),
    "StyleGAN3 `-r`": Kind(write=_stylegan3(**stylegan3_files.RADIAL)),
    "rosinality StyleGAN2": Kind(write=_committed("rosinality.pt")),
    "FastGAN-pytorch": Kind(write=_fastgan),
    "lightweight-gan": Kind(write=_lightweight),
    "BigGAN-PyTorch": Kind(write=_original("biggan_pytorch", "BigGAN", "G_ema.pth")),
    "pytorch-pretrained-biggan": Kind(
        write=_original("pretrained_biggan", "BigGAN-deep", "pytorch_model.bin")
    ),
    "CycleGAN": Kind(write=_committed("cyclegan.pth"), data=_pictures(72), crop=64),
    "pix2pix": Kind(write=_committed("pix2pix.pth"), data=_pictures(136), crop=128),
    "spandrel, `.pth`": Kind(
        write=_spandrel("pth"), data=_pictures(40), crop=32, needs=("spandrel",)
    ),
    "spandrel, safetensors": Kind(
        write=_spandrel("safetensors"), data=_pictures(40), crop=32, needs=("spandrel",)
    ),
    "HiFi-GAN": Kind(
        write=_original("hifigan", "resblock 1", "g_00000100", "generator"), data=_sounds, crop=64
    ),
    "`--module`, latents": Kind(write=_latent, module="export_kinds:Latent", shape=(8,)),
    "`--module`, pictures": Kind(
        write=lambda folder: _saved(upscaler().state_dict(), folder / "model.pth"),
        module="tests.upscalers:Upscaler", values="unit", data=_pictures(40), crop=32,
    ),
}  # fmt: skip


def converted(kind: Kind, path: Path, folder: Path) -> Path:
    """Convert the file at ``path``, and return the path of the result in ``folder``."""
    file = open_file(path, module=kind.source)
    made = convert_file(file, preset="fast", init="svd", calibrate=0)
    out = folder / path.name
    save_file(file, made.models, out)
    if (path.parent / "config.json").is_file():
        (folder / "config.json").write_bytes((path.parent / "config.json").read_bytes())
    return out
