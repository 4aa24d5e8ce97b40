"""The deployed forms of a generator.

``deploy`` makes the fast inference form in torch, ``lean`` the training form. ``export_model``
writes files of other formats, loads them again and compares them; ``load_export`` runs a graph and
``load_generator`` gives a plain module back.
"""

from __future__ import annotations

from dsconvert.export.api import check_export, export_model, load_export, load_generator
from dsconvert.export.deploy import Deployed, deploy
from dsconvert.export.lean import lean

__all__ = [
    "Deployed",
    "check_export",
    "deploy",
    "export_model",
    "lean",
    "load_export",
    "load_generator",
]
