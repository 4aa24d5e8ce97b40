"""Distillation: the student is trained on the teacher's images of random latents, without data.

``api`` distils a module and ``files`` a file; both run the loop of :mod:`dsconvert.matching`.
``run`` is the run's folder, ``critic`` the optional adversarial term.
"""

from dsconvert.config.distill import DistillConfig
from dsconvert.distill.api import Distilled, distill
from dsconvert.distill.files import FileDistillation, distill_snapshot

__all__ = ["DistillConfig", "Distilled", "FileDistillation", "distill", "distill_snapshot"]
