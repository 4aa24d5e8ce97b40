"""A generator in another format.

``export_model`` writes a file, loads it again and compares it; ``load_export`` runs a graph and
``load_generator`` gives a plain module back.
"""

from __future__ import annotations

import sys

from dsconvert.export.api import check_export, export_model, load_export, load_generator
from dsconvert.forms import deployed, flat_graph, layers, packed

# Deployed generators that earlier versions pickled refer to their classes by these names.
_EARLIER = {"deploy": deployed, "graph": flat_graph, "layers": layers, "packed": packed}
sys.modules.update({f"{__name__}.{name}": module for name, module in _EARLIER.items()})

__all__ = ["check_export", "export_model", "load_export", "load_generator"]
