"""Labels of a data set: the official ``dataset.json``, or one folder for each class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dsconvert.data.archive import DataFiles
from dsconvert.errors import DataError
from dsconvert.util.foreign_text import from_json

LABELS = "dataset.json"
_MOST_CLASSES = 1 << 16
"""More classes are a mistake in the labels: a one-hot vector of them would exhaust the memory."""


def read_labels(files: DataFiles, names: Sequence[str]) -> Tensor:
    """Return the labels of ``names``: int64 ``(N,)``, or float32 ``(N, classes)``.

    They come from ``dataset.json``; without that file, the first folder of each name is its class.

    Raises:
        DataError: there are no labels, or they do not fit the images.
    """
    if LABELS not in files.names:
        return _folder_labels(files, names)
    try:
        content = from_json(files.read(LABELS))
    except Exception as error:  # a zip raises errors of many types: a password, a compression
        raise DataError(f"{LABELS} in {files.path} can't be read: {error}.") from None
    try:
        table: dict[str, Any] = {str(k): v for k, v in content["labels"]}
    except (KeyError, TypeError, ValueError):
        raise DataError(
            f"{LABELS} in {files.path} has no labels (a list of [name, class] pairs under "
            "'labels'). Write them, or train a generator without classes."
        ) from None
    missing = [n for n in names if n not in table]
    if missing:
        raise DataError(
            f"{LABELS} in {files.path} has no label for {len(missing)} of {len(names)} images: "
            f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}."
        )
    values = [table[n] for n in names]
    if all(type(v) is int and v >= 0 for v in values):
        if max(values) >= _MOST_CLASSES:
            raise DataError(
                f"{LABELS} in {files.path} has class {max(values)}; classes are counted from 0, "
                f"and {_MOST_CLASSES} are the most."
            )
        return torch.tensor(values, dtype=torch.int64, device="cpu")
    try:
        vectors = torch.tensor(values, dtype=torch.float32, device="cpu")
    except (TypeError, ValueError):
        vectors = torch.zeros((), device="cpu")
    if vectors.dim() != 2 or not vectors.isfinite().all():
        raise DataError(
            f"the labels of {LABELS} in {files.path} are neither whole numbers of 0 or more nor "
            "vectors of one length."
        )
    return vectors


def _folder_labels(files: DataFiles, names: Sequence[str]) -> Tensor:
    folders = [n.split("/")[0] if "/" in n else "" for n in names]
    known = sorted(set(folders))
    if "" in known or len(known) < 2:
        raise DataError(
            f"{files.path} has no {LABELS}, and its images are not in one folder a class: there is "
            "nothing to condition on. Give labels, or train a generator without classes."
        )
    place = {name: i for i, name in enumerate(known)}
    return torch.tensor([place[f] for f in folders], dtype=torch.int64, device="cpu")
