"""Settings that many jobs share, and the jobs on files that have few others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from dsconvert.config.base import BaseSettings, Job
from dsconvert.config.choices import NoiseSource
from dsconvert.config.pictures import Calibrated
from dsconvert.config.setting import Group, part, setting
from dsconvert.config.values import argument, ranks, seeds
from dsconvert.errors import UsageError

CODE = Group(
    "A state dict of any other code",
    "Importing a module runs it: --module runs your own code, because you ask for it; nothing in a "
    "file runs, and no file can ask for a module.",
    last=True,
)
OUTPUT = Group("Output", last=True)
MESSAGES = Group("Messages", last=True)


LARGEST_SHEET = 10_000
"""The most images of one picture."""


@dataclass(frozen=True, kw_only=True)
class Module(BaseSettings):
    """The factory of a generator whose codebase has no adapter."""

    module: str | None = setting(
        None,
        help="a function that builds the architecture, called without arguments",
        metavar="PACKAGE.PATH:FACTORY",
        group=CODE,
    )
    key: str | None = setting(
        None, help="the entry that holds its state dict", metavar="NAME", group=CODE
    )
    input: tuple[tuple[int, ...] | str, ...] = setting(
        (),
        help="one argument of the call: the shape of a latent, for example 256 or 3,64,64; "
        "class:10 for integer labels of ten classes, onehot:10 for one-hot ones (repeat for "
        "further arguments, in their order)",
        metavar="SHAPE",
        read=argument,
        repeat=True,
        group=CODE,
    )


@dataclass(frozen=True, kw_only=True)
class Source(BaseSettings):
    """A job that opens files of any kind."""

    source: Module = part()


@dataclass(frozen=True, kw_only=True)
class Overwrite(BaseSettings):
    """A job that writes one file."""

    overwrite: bool = setting(False, help="replace an existing output", group=OUTPUT)


@dataclass(frozen=True, kw_only=True)
class Output(Overwrite):
    """A job that always writes a file."""

    out: str = setting(help="where to write", metavar="FILE", group=OUTPUT, completes="file")

    @property
    def output(self) -> str | None:
        """The file that the job writes."""
        return self.out


@dataclass(frozen=True, kw_only=True)
class OptionalOutput(Overwrite):
    """A job that may write a file."""

    out: str | None = setting(
        None, help="where to write", metavar="FILE", group=OUTPUT, completes="file"
    )

    @property
    def output(self) -> str | None:
        """The file that the job writes."""
        return self.out


@dataclass(frozen=True, kw_only=True)
class Device(BaseSettings):
    """A job that runs networks on one device."""

    device: str | None = setting(
        None,
        help="cpu, cuda, cuda:1, ...; auto: a GPU if there is one",
        default_text="auto",
        metavar="NAME",
        resumable=True,
    )


@dataclass(frozen=True, kw_only=True)
class Json(BaseSettings):
    """A job with machine-readable output."""

    json: bool = setting(
        False, help="one JSON object on stdout, no table", group=MESSAGES, resumable=True
    )


@dataclass(frozen=True, kw_only=True)
class Messages(Json):
    """A job with progress bars."""

    quiet: bool = setting(
        False, help="print errors and the last line, nothing else", group=MESSAGES, resumable=True
    )


@dataclass(frozen=True, kw_only=True)
class Verbose(BaseSettings):
    """A job whose tables leave details out."""

    verbose: bool = setting(False, help="every detail and every reason", group=MESSAGES)


@dataclass(frozen=True, kw_only=True)
class Sampling(Device):
    """How the images of given seeds are made, of whichever class."""

    trunc: float = setting(1.0, help="truncation psi of a StyleGAN2 generator", metavar="PSI")
    noise_source: NoiseSource = setting(
        "official",
        help="where noise is drawn; official: as the original's code does, for Projected GAN on "
        "the CPU: the same image everywhere; device: where the model is, which is faster on a GPU",
    )


@dataclass(frozen=True, kw_only=True)
class Drawing(Sampling):
    """How the images of given seeds are made."""

    label: int | None = setting(
        None, option="--class", help="class of a conditional generator", at_least=0
    )


def generator_path(help_: str) -> Any:
    """Return the setting of a file that is named without an option."""
    return setting(help=help_, positional=True, completes="file")


ANY_FILE = "a file with a generator, converted or not, of any kind that the other commands open"


@dataclass(frozen=True, kw_only=True)
class InspectJob(Verbose, Json, Source, Job):
    """List the contents of a file without running anything in it."""

    snapshot: str = generator_path("the file")


@dataclass(frozen=True, kw_only=True)
class ReportJob(Verbose, OptionalOutput, Messages, Source, Calibrated):
    """Count parameters and MACs, layer by layer."""

    snapshot: str = generator_path(ANY_FILE)
    other: str | None = setting(
        None, help="a converted file, to compare", positional=True, completes="file"
    )
    ranks: tuple[int, ...] = setting(
        (),
        help="also the cost of the whole generator at each rank (preset fast)",
        metavar="1-9",
        read=ranks,
    )
    sensitivity: bool = setting(
        False,
        help="also the loss of each layer by itself, at several ranks and widths, against its "
        "MACs (takes minutes); with --out FILE.svg as a picture, too",
    )

    @classmethod
    def check_typed(cls, typed: Mapping[str, Any]) -> None:
        """Refuse a picture of nothing."""
        super().check_typed(typed)
        out = typed.get("--out")
        if out and "--sensitivity" not in typed:
            raise UsageError("--out is the picture of --sensitivity; add that, or drop it.")
        if "--overwrite" in typed and not out:
            raise UsageError("--overwrite replaces the picture of --out FILE.svg; add that.")
        if out and not str(out).lower().endswith(".svg"):
            raise UsageError(f"--out {out}: the curves are written as SVG; end it in .svg.")


@dataclass(frozen=True, kw_only=True)
class CompareJob(Drawing, Output, Messages, Source, Calibrated):
    """Show the images of two files side by side, from the same latents."""

    keeps_memory: ClassVar[bool] = True
    snapshot: str = generator_path("the original")
    other: str = setting(help="the other file", positional=True, completes="file")
    seeds: tuple[int, ...] = setting(
        tuple(range(8)), help="one pair a seed", metavar="0-7", default_text="0-7", read=seeds
    )
    distance: int | None = setting(
        None, help="also FD-lite0 over N images, 2 or more (needs timm)", at_least=2
    )

    def contradictions(self) -> list[str]:
        """Problems that no single range tells."""
        wrong = super().contradictions()
        if len(self.seeds) > LARGEST_SHEET:
            wrong.append(
                f"seeds are {len(self.seeds)}, too many for one picture (at most {LARGEST_SHEET})"
            )
        return wrong
