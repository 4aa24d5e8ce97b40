"""The job ``export``: a generator for another runtime, a browser, or a hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from dsconvert.config.choices import SUFFIXES, ExportDtype, Format, Noise
from dsconvert.config.files import ANY_FILE, OUTPUT, Messages, Output, Source, generator_path
from dsconvert.config.pictures import Calibrated
from dsconvert.config.setting import Group, setting
from dsconvert.config.values import seed
from dsconvert.errors import UsageError

SHOWN = Group(
    "Pages and hub folders",
    "A page runs the generator in a browser (--format page, or --out FOLDER/). A hub folder holds "
    "safetensors and a model card (--format hub).",
)
_BELONGS: dict[str, tuple[Format, ...]] = {
    "--dtype": ("onnx", "page"),
    "--least-psnr": ("onnx", "page"),
    "--original": ("page", "hub"),
    "--title": ("page", "hub"),
    "--runtime": ("page",),
    "--plan": ("hub",),
    "--made-by": ("hub",),
    "--distance": ("hub",),
}
"""The formats that an option is for."""


@dataclass(frozen=True, kw_only=True)
class ExportJob(Output, Messages, Source, Calibrated):
    """Write a generator for other runtimes, as a web page, or for a hub.

    The end of --out names the format: .onnx, .pt2 (torch.export), .xml (OpenVINO), .mlpackage (Core
    ML), .ep (TensorRT), .safetensors; FOLDER/ (with the slash) is a page.
    """

    keeps_memory: ClassVar[bool] = False
    snapshot: str = generator_path(ANY_FILE)
    out: str = setting(
        help="where to write", metavar="FILE|FOLDER/", group=OUTPUT, completes="file"
    )
    format: Format | None = setting(
        None, help="the format", default_text="the one that the end of --out names"
    )
    noise: Noise = setting(
        "random", help="random: an input of its own, 'noise'; fixed: built in; zero: none"
    )
    seed: int = setting(0, help="of the fixed noise", read=seed)
    dtype: ExportDtype = setting(
        "fp32",
        help="of the weights of ONNX; int8 is calibrated by inputs as the fit uses them",
    )
    least_psnr: float = setting(
        30.0,
        help="of fp16 and int8: PSNR to the model below which nothing is written",
        metavar="DB",
    )
    original: str | None = setting(
        None,
        help="the original, shown (page) or compared (hub) beside it",
        metavar="FILE",
        completes="file",
        group=SHOWN,
    )
    title: str | None = setting(
        None, help="of the page or card", default_text="the file's name", group=SHOWN
    )
    runtime: str | None = setting(
        None,
        help="the npm package onnxruntime-web (its .tgz or folder), copied into the page, which "
        "then works offline",
        metavar="PATH",
        default_text="the page loads it from a CDN, checked by its hash",
        completes="file",
        group=SHOWN,
    )
    plan: str | None = setting(
        None, help="the plan of the conversion", metavar="FILE", completes="file", group=SHOWN
    )
    made_by: str | None = setting(
        None, help="the command that made the file", metavar="TEXT", group=SHOWN
    )
    distance: int | None = setting(
        None,
        help="also FD-lite0 to the original over N images (needs timm)",
        at_least=2,
        group=SHOWN,
    )

    @classmethod
    def check_typed(cls, typed: Mapping[str, Any]) -> None:
        """Refuse options of another format."""
        super().check_typed(typed)
        name = export_format(str(typed.get("--out", "")), typed.get("--format"))
        for option, formats in _BELONGS.items():
            if option not in typed or name is None or name in formats:
                continue
            raise UsageError(
                f"{option} is for the format {' or '.join(formats)}, and --out "
                f"{typed.get('--out', '')} is of the format {name}; leave the option out."
            )
        if "--seed" in typed and typed.get("--noise") != "fixed":
            raise UsageError("--seed is of the fixed noise: add --noise fixed, or leave it out.")
        if "--least-psnr" in typed and typed.get("--dtype", "fp32") == "fp32":
            raise UsageError("--least-psnr is of fp16 and int8: add --dtype, or leave it out.")
        if "--distance" in typed and "--original" not in typed:
            raise UsageError("--distance N compares with --original FILE; name it.")


def export_format(out: str, name: Format | None) -> Format | None:
    """Return the format that is named, or else that of the end of ``out``; None: neither says."""
    if name is not None:
        return name
    if out.endswith(("/", "\\")):
        return "page"
    return SUFFIXES.get(Path(out).suffix.lower())
