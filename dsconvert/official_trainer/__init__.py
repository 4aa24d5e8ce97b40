"""The official Projected GAN trainer, unmodified, with a converted generator in it.

``train`` starts a checkout's own ``train.py``. Nothing in the checkout is edited; what changes is
done from outside, in this process and in those it spawns: the generator is restructured where the
trainer constructs it, what it resumes is checked, and today's timm answers the old calls.
"""

from __future__ import annotations

from dsconvert.official_trainer.hooks import Settings
from dsconvert.official_trainer.launch import train

__all__ = ["Settings", "train"]
