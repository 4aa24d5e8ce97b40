"""Numbers of numpy, read without numpy: ``numpy.core.multiarray.scalar(dtype, bytes)``."""

from __future__ import annotations

import struct

from dsconvert.safepickle.nodes import Global, Node, Record, tuple_of
from dsconvert.safepickle.plain_data import DTYPE, SCALARS

_FORMS = {
    "f2": "e", "f4": "f", "f8": "d", "b1": "?",
    "i1": "b", "i2": "h", "i4": "i", "i8": "q",
    "u1": "B", "u2": "H", "u4": "I", "u8": "Q",
}  # fmt: skip
"""The numeric types of numpy that have an equal in Python's ``struct``."""


def plain_number(node: Node) -> Node:
    """Return a scalar of numpy as the number that it stands for; any other node as it is."""
    if type(node) is not Record or type(node.func) is not Global or node.func.key not in SCALARS:
        return node
    dtype, raw = node.args if len(node.args) == 2 else (None, None)
    if type(dtype) is not Record or type(dtype.func) is not Global or dtype.func.key != DTYPE:
        return node
    name = dtype.args[0] if dtype.args else None
    form = _FORMS.get(name.lstrip("<>|=")) if type(name) is str else None
    if form is None or type(raw) is not bytes or len(raw) != struct.calcsize(form):
        return node
    orders = [state[1] for op, value in dtype.ops if op == "build" and (state := tuple_of(value))]
    order = ">" if ">" in orders else "<"
    return struct.unpack(order + form, raw)[0]
