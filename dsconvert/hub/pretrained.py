"""Save a generator as a folder for a hub, and load one from a folder or a hub."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsconvert.config.choices import Noise
from dsconvert.data.pictures import grid, save_picture, side_by_side
from dsconvert.data.waveforms import in_a_row, write_wav
from dsconvert.errors import ForeignFileError, UsageError
from dsconvert.export.graphs import need
from dsconvert.formats.base import GeneratorFile
from dsconvert.formats.registry import load_safetensors, open_file
from dsconvert.hub.card import card, role_name
from dsconvert.hub.measure import CardFacts, measure
from dsconvert.records import Plan
from dsconvert.rules.recognise import structure_of
from dsconvert.util.folders import FolderKind, check_new_folder, whole_folder
from dsconvert.util.version import VERSION

if TYPE_CHECKING:
    import os

    from torch import nn

    from dsconvert.adapter import Adapter

WEIGHTS = "model.safetensors"
MARK = "config.json"
KIND = FolderKind(
    mark=MARK,
    key="library",
    value="dsconvert",
    names=(MARK, WEIGHTS, "README.md", "plan.json", "samples.png", "samples.wav", "samples-*.wav"),
)


@dataclass(frozen=True, kw_only=True)
class HubFolder:
    """A folder that was written."""

    path: str
    files: tuple[str, ...]
    bytes: int
    measured: dict[str, Any]
    """Cost and quality, as in ``config.json``."""


def check_hub(path: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Check that a hub folder can be written to ``path``.

    Raises:
        MissingExtraError: safetensors is not installed.
        OutputError: the folder may not be written.
    """
    need("safetensors", "safetensors")
    check_new_folder(path, kind=KIND, overwrite=overwrite)


def save_pretrained(
    file: GeneratorFile,
    path: str | os.PathLike[str],
    *,
    original: GeneratorFile | None = None,
    title: str | None = None,
    plan: Plan | None = None,
    made_by: str | None = None,
    distance: int | None = None,
    noise: Noise = "random",
    overwrite: bool = False,
) -> HubFolder:
    """Write the generator of ``file`` with a model card, for a hub or for anybody.

    Args:
        file: an opened file: :func:`dsconvert.open_file`.
        path: the folder.
        original: the file that it was made from, for the card's comparison.
        title: of the card; None: the file's name.
        plan: of the conversion.
        made_by: the command that made the file.
        distance: images for FD-lite0 to the original; None: it is not measured.
        noise: ``random`` keeps the generator's noise, ``zero`` leaves it out.
        overwrite: whether a folder that this function wrote may be replaced.

    Raises:
        MissingExtraError: safetensors is not installed.
        UsageError: fixed noise; no adapter knows the generator; or the original has other inputs
            or images.
        AdapterError, ExportError, OutputError: as for a safetensors export.
    """
    check_hub(path, overwrite=overwrite)
    if noise == "fixed":
        raise UsageError(
            "safetensors holds the generator itself, which draws its own noise: --noise is random "
            "or zero there, not fixed."
        )
    if file.adapter is None:
        raise UsageError(
            f"nothing but your own code builds the generator of {file.path}, so that "
            "from_pretrained could not load it: export it to .safetensors or .onnx."
        )
    name = title or Path(file.path or "generator").name
    with whole_folder(path, kind=KIND, overwrite=overwrite) as folder:
        made = file.save_safetensors(file.generator, folder / WEIGHTS, noise=noise, overwrite=False)
        # The card is of the weights in the folder, which may be without their noise.
        written = open_file(folder / WEIGHTS, adapters=(file.adapter,))
        written = replace(written, path=file.path, given=file.given)
        measured = measure(written, original, distance=distance)
        facts, converted = _facts(measured), plan is not None or _is_converted(file, original)
        _show(measured, folder, converted=converted)
        if plan is not None:
            (folder / "plan.json").write_text(plan.to_json() + "\n", encoding="utf-8")
        adapter = file.adapter.name
        config = {
            "library": "dsconvert",
            "dsconvert": VERSION,
            "adapter": adapter,
            "generator": dict(file.config),
            "bytes": made.bytes,
            "noise": noise,
            "converted": converted,
            **facts,
            "made_by": made_by,
        }
        (folder / MARK).write_text(json.dumps(config, indent=1, default=str), encoding="utf-8")
        text = card(
            title=name,
            folder=Path(path).name,
            adapter=adapter,
            measured=measured,
            converted=converted,
            noise=noise,
            names={
                "generator": Path(file.path or WEIGHTS).name,
                "original": "" if original is None else Path(original.path or "original").name,
            },
            size=made.bytes,
            task=_task(file, measured),
            made_by=made_by,
            plan=plan is not None,
        )
        (folder / "README.md").write_text(text, encoding="utf-8")
        files = sorted(folder.iterdir())
        names, size = tuple(f.name for f in files), sum(f.stat().st_size for f in files)
    return HubFolder(path=str(path), files=names, bytes=size, measured=facts)


def _is_converted(file: GeneratorFile, original: GeneratorFile | None) -> bool:
    """Return whether a rule's work is seen in the generator, or it is built unlike the original."""
    found = structure_of(file.generator)
    return found.converted or (original is not None and found != structure_of(original.generator))


def _show(measured: CardFacts, folder: Path, *, converted: bool) -> None:
    """Write the samples: a picture, the original's above; or sounds, the original's beside."""
    rows, sounds = measured.rows, measured.sounds
    if sounds is None:
        both = "original" in rows
        named = {role_name(role, converted=converted): made for role, made in rows.items()}
        sheet = side_by_side(named) if both else grid(rows["generator"], columns=4)
        save_picture(sheet, folder / "samples.png")
        return
    for role, made in rows.items():
        name = "samples.wav" if role == "generator" else f"samples-{role}.wav"
        write_wav(in_a_row(made, rate=sounds.rate), folder / name, rate=sounds.rate)


def _task(file: GeneratorFile, measured: CardFacts) -> str | None:
    """Return the hub's name of what the generator does; it has none for images of classes."""
    if measured.classes:
        return None
    if file.sounds() is not None:
        return "audio-to-audio"
    return "unconditional-image-generation" if file.pictures() is None else "image-to-image"


def _facts(measured: CardFacts) -> dict[str, Any]:
    return {
        "device": measured.device,
        "threads": measured.threads,
        "classes": measured.classes,
        "costs": {role: asdict(each) for role, each in measured.costs.items()},
        "quality": None if measured.quality is None else asdict(measured.quality),
    }


def from_pretrained(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    adapters: Sequence[Adapter] = (),
) -> nn.Module:
    """Load the generator of a folder, or of a repository of the Hugging Face hub.

    Nothing in the files is executed. A folder needs no network.

    Args:
        name: a folder that :func:`save_pretrained` wrote; or ``owner/name`` on the hub.
        revision: a branch, tag or commit on the hub.
        adapters: further adapters, which need not be installed.

    Returns:
        the generator in eval mode, without gradients, in float32.

    Raises:
        MissingExtraError: safetensors, or for the hub huggingface_hub, is not installed.
        ForeignFileError: there is no such folder or repository, or the hub can't be reached.
        SnapshotError: the file can't be read.
    """
    need("safetensors", "safetensors")
    folder = Path(name)
    if folder.is_dir():
        if not (folder / WEIGHTS).is_file():
            raise ForeignFileError(
                f"the folder {folder} holds no {WEIGHTS}; name one that save_pretrained wrote."
            )
        return load_safetensors(folder / WEIGHTS, adapters=adapters)
    if isinstance(name, Path) or not _is_hub_id(str(name)):
        raise ForeignFileError(
            f"there is no folder {name}, and it is no owner/name of a repository; mend the name."
        )
    need("hub", "huggingface_hub")
    hub: Any = import_module("huggingface_hub")
    try:
        path = hub.hf_hub_download(str(name), WEIGHTS, revision=revision)
    except Exception as error:  # its network libraries have errors of their own
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ForeignFileError(
            f"{name} can't be loaded from the hub: {lines[0].rstrip('.')}. Check the name and the "
            "network, or name a folder."
        ) from error
    return load_safetensors(Path(path), adapters=adapters)


def _is_hub_id(name: str) -> bool:
    owner, slash, repository = name.partition("/")
    return bool(owner and slash and repository) and "/" not in repository and "." not in owner
