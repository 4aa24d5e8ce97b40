"""The deployed forms of a generator.

``deploy`` makes the fast inference form in torch; ``export_model`` writes ONNX, ``torch.export``,
OpenVINO or safetensors, loads the result again and compares it; ``load_export`` runs a graph and
``load_generator`` gives a plain module back.
"""

from __future__ import annotations

from dsconvert.export.api import check_export, export_model, load_export, load_generator
from dsconvert.export.deploy import Deployed, deploy

__all__ = [
    "Deployed",
    "check_export",
    "deploy",
    "export_model",
    "load_export",
    "load_generator",
]
