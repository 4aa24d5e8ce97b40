"""Checkpoints of other codebases (``torch.save``, safetensors): tensors by name, no classes.

``load_checkpoint`` and ``save_checkpoint`` are the doors; ``inspect_checkpoint`` says what is in a
file. Nothing in a file runs: it is read with ``torch.load(weights_only=True)``.
"""

from __future__ import annotations

from dsconvert.formats.checkpoint.api import Checkpoint, load_checkpoint, save_checkpoint
from dsconvert.formats.checkpoint.info import CheckpointInfo, inspect_checkpoint
from dsconvert.formats.checkpoint.module import ModuleSource
from dsconvert.formats.checkpoint.read import is_checkpoint

__all__ = [
    "Checkpoint",
    "CheckpointInfo",
    "ModuleSource",
    "inspect_checkpoint",
    "is_checkpoint",
    "load_checkpoint",
    "save_checkpoint",
]
