"""Run the official Projected GAN trainer, unmodified, with a converted generator.

``train`` starts the ``train.py`` of a checkout and edits no file in it. Hooks in this process and
in the processes it spawns restructure the generator when the trainer constructs it, check the
snapshot that it resumes, and redirect calls of the old timm to the installed one.
"""

from __future__ import annotations

from dsconvert.official_trainer.hooks import ConversionSettings
from dsconvert.official_trainer.launch import train

__all__ = ["ConversionSettings", "train"]
