"""The same generator for another purpose: ``deploy`` for inference, ``lean`` for training."""

from __future__ import annotations

from dsconvert.forms.deployed import Deployed, deploy
from dsconvert.forms.lean_training import lean

__all__ = ["Deployed", "deploy", "lean"]
