"""A generator in another format.

``export_model`` writes a file, loads it again and compares it; ``load_export`` runs a graph and
``load_generator`` gives a plain module back.
"""

from __future__ import annotations

from dsconvert.export.api import check_export, export_model, load_export, load_generator

__all__ = ["check_export", "export_model", "load_export", "load_generator"]
