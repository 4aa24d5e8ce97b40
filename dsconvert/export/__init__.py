"""A model as a graph that other runtimes load: ONNX, OpenVINO and ``torch.export``.

``export_graph`` writes a graph, loads it again and compares its images with the model's;
``load_export`` opens one to run it. This package knows models, not files with generators:
:mod:`dsconvert.formats.export_file` exports those.
"""

from __future__ import annotations

import sys

from dsconvert.export.graphs import GRAPHS
from dsconvert.export.write import check_graph, export_graph, load_export
from dsconvert.forms import deployed, flat_graph, layers, packed

# Deployed generators that earlier versions pickled refer to their classes by these names.
_EARLIER = {"deploy": deployed, "graph": flat_graph, "layers": layers, "packed": packed}
sys.modules.update({f"{__name__}.{name}": module for name, module in _EARLIER.items()})

__all__ = ["GRAPHS", "check_graph", "export_graph", "load_export"]
