"""Distillation: the student is trained on the teacher's images of random latents, without data.

``api`` distils a module and ``files`` a file. ``loss`` compares teacher and student, ``batches``
numbers the latents, ``loop`` trains, ``evaluator`` measures on held-out latents, ``run`` is the
run's folder.
"""

from dsconvert.config.distill import DistillConfig
from dsconvert.distill.api import Distilled, distill
from dsconvert.distill.files import FileDistillation, distill_snapshot

__all__ = ["DistillConfig", "Distilled", "FileDistillation", "distill", "distill_snapshot"]
