"""Checkpoints of other codebases (``torch.save``, safetensors): tensors by name, no classes.

``load_checkpoint`` and ``save_checkpoint`` read and write one; ``inspect_checkpoint`` returns the
facts about one. Nothing in a file runs: it is read with ``torch.load(weights_only=True)``.
"""

from __future__ import annotations

from dsconvert.formats.base import FileFormat, ModuleSource
from dsconvert.formats.checkpoint.file import Checkpoint, save_checkpoint
from dsconvert.formats.checkpoint.info import CheckpointInfo, inspect_checkpoint
from dsconvert.formats.checkpoint.load import load_checkpoint
from dsconvert.formats.checkpoint.read import is_checkpoint

__all__ = [
    "FORMAT",
    "Checkpoint",
    "CheckpointInfo",
    "ModuleSource",
    "inspect_checkpoint",
    "is_checkpoint",
    "load_checkpoint",
    "save_checkpoint",
]

FORMAT = FileFormat(
    file=Checkpoint,
    detects=lambda path: is_checkpoint(path) is not None,
    open=lambda path, drop, module, adapters: load_checkpoint(
        path, drop=drop, module=module, adapters=adapters
    ),
    inspect=lambda path, module, adapters: inspect_checkpoint(
        path, module=module, adapters=adapters
    ),
)
