"""Read, check and write a pickle as inert data: nothing in it is imported, called or run.

- :func:`read_pickle` turns a file into nodes (:mod:`dsconvert.safepickle.nodes`) by a machine that
  has nothing to call. Byte strings stay in the file (:class:`Source`).
- :func:`examine` checks every operation of the pickle, reachable or not, against the caller's
  :class:`AllowList` and returns the :class:`Offence` records; :func:`plain_calls` is the part of
  the list that stands for plain data (containers, numbers of numpy, tensors of torch).
- :class:`Storages`, :func:`parse_tensor` and the ``is_*`` functions find tensors and their bytes.
- :func:`write_file` writes nodes as a pickle of protocol 4, whole or not at all.

The package knows pickles and torch's tensors; it knows no model and no codebase. Callers bring the
names that they allow and build their own objects from the nodes.
"""

from __future__ import annotations

from dsconvert.safepickle.allow import AllowList, Call, Key, Objection
from dsconvert.safepickle.examine import Offence, examine, judge_state
from dsconvert.safepickle.nodes import (
    DictNode,
    Global,
    Node,
    Record,
    SetNode,
    TensorData,
    clean,
    dict_pairs,
    list_of,
    tuple_of,
)
from dsconvert.safepickle.numpy_number import plain_number
from dsconvert.safepickle.plain_data import DTYPES, plain_calls
from dsconvert.safepickle.read import Pickle, read_pickle
from dsconvert.safepickle.source import Source
from dsconvert.safepickle.storage import (
    Storages,
    TensorRef,
    is_parameter,
    is_storage,
    is_tensor,
    parse_tensor,
)
from dsconvert.safepickle.walk import Walk
from dsconvert.safepickle.write import write_file

__all__ = [
    "DTYPES",
    "AllowList",
    "Call",
    "DictNode",
    "Global",
    "Key",
    "Node",
    "Objection",
    "Offence",
    "Pickle",
    "Record",
    "SetNode",
    "Source",
    "Storages",
    "TensorData",
    "TensorRef",
    "Walk",
    "clean",
    "dict_pairs",
    "examine",
    "is_parameter",
    "is_storage",
    "is_tensor",
    "judge_state",
    "list_of",
    "parse_tensor",
    "plain_calls",
    "plain_number",
    "read_pickle",
    "tuple_of",
    "write_file",
]
