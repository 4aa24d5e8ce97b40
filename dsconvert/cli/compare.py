"""``compare``: the same latents and noise through two files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dsconvert.cli.files import opened
from dsconvert.cli.generate import images_of, stage
from dsconvert.cli.output import Bars, emit, say, say_whole
from dsconvert.cli.parser import Call
from dsconvert.cli.sounds import (
    check_medium,
    check_sounds,
    compared,
    names_page,
    names_sound,
    recordings_of,
    write_page,
    write_rows,
)
from dsconvert.config.files import CompareJob
from dsconvert.data.classes import classes_of, with_class
from dsconvert.data.picture_inputs import PictureInputs, as_shown
from dsconvert.data.pictures import check_picture, check_size, psnr, save_picture, side_by_side
from dsconvert.errors import UsageError
from dsconvert.formats.alike import check_same_inputs
from dsconvert.formats.base import GeneratorFile
from dsconvert.formats.paint import picture_of
from dsconvert.metrics import FeatureDistance, LiteFeatures, feature_distance
from dsconvert.model.inputs import held_out_inputs
from dsconvert.model.noise_source import noise_from
from dsconvert.records.sounds import MelSpec
from dsconvert.util.devices import for_work


def _labels(first: str, second: str) -> tuple[str, str]:
    """File names alone, where they differ: a sheet of one image has no room for a whole path."""
    names = Path(first).name, Path(second).name
    return names if names[0] != names[1] else (first, second)


def _read(file: GeneratorFile, options: CompareJob, made: Tensor) -> dict[str, Tensor]:
    """Return a row of the pictures that the generator reads, enlarged to the images it makes."""
    inputs = file.inputs()
    if not isinstance(inputs, PictureInputs):
        return {}
    draw = file.draws(options.label)
    crops = as_shown([draw(seed)[0] for seed in options.seeds], inputs.values)
    return {"input": functional.interpolate(crops, made.shape[-2:], mode="nearest")}


def _sounds(
    options: CompareJob, original: tuple[GeneratorFile, Tensor], made: Tensor, spec: MelSpec
) -> None:
    """Write the sounds, the original's and the recordings, and say how far apart they are."""
    file, wanted = original
    heard = recordings_of(file, options.seeds)
    data, text = compared(wanted, made, heard)
    rows = {"converted": made, "original": wanted}
    if heard is not None:
        rows["recording"] = heard[:, None, None]
    if names_page(options.out):
        paths = check_sounds(options.out, overwrite=options.overwrite)
        write_page(
            {label: rows[label] for label in reversed(rows)},
            paths[0],
            spec,
            text=text,
            seeds=options.seeds,
            distances=data["stft_distance"],
            overwrite=options.overwrite,
        )
    else:
        parts = ("", *(f"-{label}" for label in rows if label != "converted"))
        paths = check_sounds(options.out, overwrite=options.overwrite, parts=parts)
        write_rows(dict(zip(paths, rows.values(), strict=True)), spec, overwrite=options.overwrite)
    names = [str(p) for p in paths]
    if options.json:
        emit({"snapshot": options.snapshot, "other": options.other, "out": names, **data})
    else:
        if not options.quiet:
            say(text)
        say_whole(f"wrote {', '.join(names)}")


def _distance(
    first: GeneratorFile,
    second: GeneratorFile,
    options: CompareJob,
    features: LiteFeatures,
    device: torch.device,
) -> FeatureDistance:
    """Measure FD-lite0 of the same images as the sheet shows: truncated, of that class and noise.

    Raises:
        UsageError: nothing says what the inputs look like, or a class can't be held in them.
    """
    inputs = first.inputs()
    if inputs is None:
        raise UsageError(f"--distance: the inputs of {options.snapshot} are unknown; add --input.")
    inputs = held_out_inputs(inputs)
    if options.label is not None:
        if not classes_of(inputs):
            raise UsageError(
                f"--distance: the inputs of {options.snapshot} are not latents and a class, so "
                "that --class can't be held; leave --distance out."
            )
        inputs = with_class(inputs, options.label)
    one, two = (picture_of(f, trunc=options.trunc, device=device) for f in (first, second))
    source = options.noise_source
    with Bars(hidden=options.quiet) as bars, noise_from(one, source), noise_from(two, source):
        return feature_distance(
            two,
            one,
            inputs,
            samples=options.distance or 0,
            features=features,
            progress=bars,
        )


def run(call: Call) -> None:
    """Show them side by side, with the PSNR of each pair."""
    options: CompareJob = call.options
    heard = names_sound(options.out) or names_page(options.out)
    if not heard:
        check_picture(options.out, overwrite=options.overwrite)
    device = for_work(options.device)
    if options.distance and heard:
        raise UsageError("--distance: FD-lite0 is of pictures; leave it out for sounds.")
    # A missing extra fails here, not after minutes of work.
    features = LiteFeatures(device) if options.distance else None
    first, second = opened(options.snapshot, options), opened(options.other, options)
    if options.distance:
        check_same_inputs(first, second, otherwise="their distance can't be measured")
    spec = check_medium(first, options.out, page=True)
    check_medium(second, options.out, page=True)
    if spec is None and Path(options.out).suffix.lower() != ".png":
        # The other formats hold far fewer pixels a side: one image tells before the others.
        image = images_of(first, options.seeds[:1], options, lambda _: None, device=device)
        wide = len(options.seeds) * image.shape[-1]
        check_size(options.out, wide, image.shape[-2], remedy="fewer --seeds")
    one, two = _labels(options.snapshot, options.other)
    with Bars(hidden=options.quiet) as bars:
        a, b = (
            images_of(file, options.seeds, options, progress, device=device)
            for file, progress in (
                (first, stage(bars, one, len(options.seeds))),
                (second, stage(bars, two, len(options.seeds))),
            )
        )
    if a.shape != b.shape:
        raise UsageError(
            f"{options.snapshot} makes {list(a.shape[1:])} images and {options.other} "
            f"{list(b.shape[1:])}: they can't be compared."
        )
    if spec is not None:
        _sounds(options, (first, a), b, spec)
        return
    values = psnr(b, a)
    data: dict[str, Any] = {
        "snapshot": options.snapshot,
        "other": options.other,
        "out": options.out,
        "psnr_db": {str(s): float(v) for s, v in zip(options.seeds, values, strict=True)},
        "psnr_db_mean": float(values.mean()),
    }
    text = f"PSNR {values.mean():.1f} dB (mean), {values.min():.1f} dB (worst)"
    if features is not None:
        fd = _distance(first, second, options, features, device)
        data["fd_lite0"] = {**vars(fd), "distinguishable": fd.distinguishable}
        verdict = "distinguishable" if fd.distinguishable else "not distinguishable"
        text += (
            f"\nFD-lite0 over {fd.samples} images: {fd.value:.1f}, floor (original against itself,"
            f" other latents) {fd.floor:.1f}, difference {fd.interval[0]:.1f} to"
            f" {fd.interval[1]:.1f}: {verdict}; same latents {fd.same_latents:.1f}"
        )
    rows = {**_read(first, options, a), one: a, f"{two} (PSNR {values.mean():.1f} dB)": b}
    save_picture(side_by_side(rows), options.out, overwrite=options.overwrite)
    if options.json:
        emit(data)
    else:
        if not options.quiet:
            say(text)
        say_whole(f"wrote {options.out}")
