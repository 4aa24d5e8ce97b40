"""The files of a teacher between visits of a GPU: networks in half precision, parts of an archive.

A machine that is lent for minutes gives back a few files of a limited size. So the networks, a
sheet of samples and the curve travel as one tar archive, cut into parts whose names count them
(``teacher-32064.0of4``): a set of parts is complete or it is not there.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

PART_BYTES = 15 << 20
NETWORKS = ("ema", "d", "g")
"""The names of the files, the most important first."""
FROZEN = "feature_network.pretrained."
"""Weights that a package holds: they do not travel."""


def stored(network: nn.Module) -> dict[str, Tensor]:
    """Return the state of a network for a file: half precision, each weight once.

    Vectors (biases, statistics, power iterations) and frozen projections stay in float32: they are
    small, and statistics may exceed what half precision can hold.
    """
    state = network.state_dict()
    return {
        name: value.half().contiguous()
        if value.is_floating_point() and value.dim() > 1 and "feature_network" not in name
        else value.contiguous()
        for name, value in state.items()
        if f"{name}_orig" not in state and not name.startswith(FROZEN)
    }


def load_stored(network: nn.Module, path: Path) -> None:
    """Load what :func:`stored` returned.

    Raises:
        SystemExit: the file is of another network.
    """
    with safe_open(path, "pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    wanted = network.state_dict()
    lacking = [
        name
        for name in wanted
        if name not in state and f"{name}_orig" not in state and not name.startswith(FROZEN)
    ]
    other = [n for n, t in state.items() if n not in wanted or wanted[n].shape != t.shape]
    if lacking or other:
        raise SystemExit(f"{path} is of another network: see {(lacking + other)[0]}.")
    network.load_state_dict(state, strict=False)


def facts_of(path: Path) -> dict[str, str]:
    """Return the facts in the header of a file."""
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def network_of(path: Path) -> str:
    """Return which network a file holds; a file that does not say it holds a moving average."""
    return facts_of(path).get("network", "ema")


def write_parts(
    folder: Path,
    name: str,
    networks: Mapping[str, nn.Module],
    facts: Mapping[str, str],
    others: Mapping[str, bytes],
    *,
    images: int,
    parts: int,
) -> list[str]:
    """Write networks and other files as parts of one archive, in place of an earlier set.

    Args:
        folder: for the parts.
        name: of the set.
        networks: by the names of :data:`NETWORKS`; the last ones are left out if all together
            take more than ``parts`` parts.
        facts: for the header of each network.
        others: further files, which come first.
        images: that the networks have seen; the set is named by it.
        parts: the most.

    Returns:
        the names of the networks that were left out.
    """
    files = dict(others)
    left_out: list[str] = []
    for key in NETWORKS:
        data = save(stored(networks[key]), {**facts, "network": key})
        if sum(map(len, files.values())) + len(data) > parts * PART_BYTES - (1 << 16):
            left_out.append(key)
        else:
            files[f"{key}.safetensors"] = data
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for file, data in files.items():
            member = tarfile.TarInfo(file)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    content = stream.getvalue()
    cut = [content[i : i + PART_BYTES] for i in range(0, len(content), PART_BYTES)]
    earlier = set(folder.glob(f"{name}-*.*of*"))
    written: set[Path] = set()
    for i, part in enumerate(cut):
        path = folder / f"{name}-{images}.{i}of{len(cut)}"
        beside = path.with_name(f".{path.name}")
        beside.write_bytes(part)
        beside.replace(path)
        written.add(path)
    for old in earlier - written:
        old.unlink()
    return left_out


def collect(folder: Path, out: Path) -> dict[str, Any]:
    """Join the newest complete set of parts in ``folder``, and write its files to ``out``.

    Returns:
        the curve of the training.

    Raises:
        SystemExit: there is no complete set.
    """
    sets: dict[str, list[Path]] = {}
    for path in folder.glob("*-*.*of*"):
        sets.setdefault(path.stem, []).append(path)
    complete = [
        found for found in sets.values() if len(found) == int(found[0].suffix.partition("of")[2])
    ]
    if not complete:
        raise SystemExit(f"{folder} holds no complete set of parts (NAME-IMAGES.0of4, ...).")
    newest = max(complete, key=lambda found: int(found[0].stem.rpartition("-")[2]))
    ordered = sorted(newest, key=lambda p: int(p.suffix[1:].partition("of")[0]))
    out.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO(b"".join(p.read_bytes() for p in ordered))
    with tarfile.open(fileobj=content) as archive:
        for member in archive.getmembers():
            file = archive.extractfile(member)
            if file is not None and Path(member.name).name == member.name:
                (out / member.name).write_bytes(file.read())
    curve: dict[str, Any] = json.loads((out / "curve.json").read_text(encoding="utf-8"))
    return curve
