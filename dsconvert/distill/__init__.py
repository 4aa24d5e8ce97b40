"""Distillation: a student learns from its teacher, on latents alone.

``api`` is the door for two modules, ``files`` for two files. ``loss`` says what is compared,
``loop`` how it is learnt, ``judge`` how far it got, ``folder`` what is kept of a run.
"""

from dsconvert.distill.api import Distilled, distill
from dsconvert.distill.config import DistillConfig
from dsconvert.distill.files import FileDistillation, distill_snapshot

__all__ = ["DistillConfig", "Distilled", "FileDistillation", "distill", "distill_snapshot"]
