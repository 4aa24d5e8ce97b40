"""A model as a graph that other runtimes load: ONNX, OpenVINO and ``torch.export``.

``export_graph`` writes a graph, loads it again and compares its images with the model's;
``load_export`` opens one to run it. This package knows models, not files with generators:
:mod:`dsconvert.formats.export_file` exports those.
"""

from __future__ import annotations

from dsconvert.export.graphs import GRAPHS
from dsconvert.export.write import check_graph, export_graph, load_export

__all__ = ["GRAPHS", "check_graph", "export_graph", "load_export"]
