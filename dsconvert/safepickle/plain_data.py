"""Calls that stand for plain data: containers, numbers of numpy, tensors of torch."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dsconvert.safepickle.allow import Call, Key
from dsconvert.safepickle.nodes import Blob, DictNode, Global, Node, Record, tuple_of
from dsconvert.safepickle.storage import LOAD_FROM_BYTES, REBUILD_PARAMETER, REBUILD_TENSOR

if TYPE_CHECKING:
    from collections.abc import Callable

_NUMERIC_DTYPE = re.compile(r"[<>|=]?(?:[biufcSUV]\d{1,6}|\?)", re.ASCII)
_BUILTINS = ("builtins", "__builtin__")
_FACTORY_NAMES = ("list", "dict", "int", "float", "set", "str")
_FACTORIES = frozenset((m, n) for m in _BUILTINS for n in _FACTORY_NAMES)
_NUMPY = ("numpy.core", "numpy._core")
DTYPE: Key = ("numpy", "dtype")
SCALARS: frozenset[Key] = frozenset((f"{m}.multiarray", "scalar") for m in _NUMPY)
"""The call that stands for one number of numpy."""

# fmt: off
_DTYPES = frozenset({
    "float64", "double", "float32", "float", "float16", "half", "bfloat16", "int64", "long",
    "int32", "int", "int16", "short", "int8", "uint8", "bool", "complex64", "complex128",
})
# fmt: on
DTYPES: frozenset[Key] = frozenset(("torch", name) for name in _DTYPES)
"""The types of tensors, which stand as plain data."""


def _is_call(node: Node, *keys: Key) -> bool:
    return type(node) is Record and type(node.func) is Global and node.func.key in keys


def _is_bytes(node: Node) -> bool:
    # Protocols 0 to 2 spell bytes as text that is encoded.
    return type(node) in (bytes, Blob) or _is_call(
        node, ("_codecs", "encode"), *((m, "bytes") for m in _BUILTINS)
    )


def _container(args: tuple[Node, ...]) -> bool:
    return not args or (len(args) == 1 and type(args[0]) in (list, tuple, DictNode))


def _default_dict(args: tuple[Node, ...]) -> bool:
    return not args or (
        len(args) == 1
        and (args[0] is None or (type(args[0]) is Global and args[0].key in _FACTORIES))
    )


def _device(args: tuple[Node, ...]) -> bool:
    return 1 <= len(args) <= 2 and type(args[0]) is str and all(type(a) in (str, int) for a in args)


def _bytearray(args: tuple[Node, ...]) -> bool:
    return not args or (len(args) == 1 and _is_bytes(args[0])) or _encode(args)


def _nothing(args: tuple[Node, ...]) -> bool:
    return not args


def _encode(args: tuple[Node, ...]) -> bool:
    return (
        len(args) == 2
        and type(args[0]) is str
        and type(args[1]) is str
        and args[1] in ("latin1", "latin-1")
    )


def _floats(args: tuple[Node, ...]) -> bool:
    return len(args) == 2 and all(type(a) in (int, float) for a in args)


def _dtype(args: tuple[Node, ...]) -> bool:
    return (
        1 <= len(args) <= 3
        and type(args[0]) is str
        and _NUMERIC_DTYPE.fullmatch(args[0]) is not None
        and all(type(a) in (bool, int) for a in args[1:])
    )


def _is_dtype(node: Node) -> bool:
    return _is_call(node, DTYPE)


def _scalar(args: tuple[Node, ...]) -> bool:
    return len(args) == 2 and _is_dtype(args[0]) and _is_bytes(args[1])


def _from_buffer(args: tuple[Node, ...]) -> bool:
    return len(args) == 4 and _is_bytes(args[0]) and _is_dtype(args[1]) and type(args[2]) is tuple


def _array(args: tuple[Node, ...]) -> bool:
    return (
        len(args) == 3
        and type(args[0]) is Global
        and args[0].key == ("numpy", "ndarray")
        and type(args[1]) is tuple
        and _is_bytes(args[2])
    )


def _reconstructor(classes: Callable[[Key], bool]) -> Callable[[tuple[Node, ...]], bool]:
    def check(args: tuple[Node, ...]) -> bool:
        if len(args) != 3 or type(args[0]) is not Global or type(args[1]) is not Global:
            return False
        if args[1].key[0] not in _BUILTINS or not classes(args[0].key):
            return False
        base = args[1].name
        return (base == "object" and args[2] is None) or (
            base == "dict" and type(args[2]) is DictNode
        )

    return check


def _anything(args: tuple[Node, ...]) -> bool:
    return len(args) <= 7  # tensors and storages have a check of their own, see storage.py


def _dtype_state(state: Node) -> bool:
    # Version, byte order, no sub-array, no names, no fields, sizes, and flags: those say whether
    # elements are object pointers, so anything but 0 would let bytes pass for objects.
    values = tuple_of(state)
    return (
        values is not None
        and 8 <= len(values) <= 9
        and type(values[0]) is int
        and type(values[1]) is str
        and values[1] in ("<", ">", "|", "=")
        and values[2:5] == (None, None, None)
        and all(type(v) is int for v in values[5:8])
        and values[7] == 0
        and all(v is None for v in values[8:])
    )


def _array_state(state: Node) -> bool:
    values = tuple_of(state)
    shape = tuple_of(values[1]) if values is not None and len(values) == 5 else None
    return (
        values is not None
        and shape is not None
        and type(values[0]) is int
        and all(type(v) is int and v >= 0 for v in shape)
        and _is_dtype(values[2])
        and type(values[3]) is bool
        and _is_bytes(values[4])
    )


def plain_calls(classes: Callable[[Key], bool]) -> dict[Key, Call]:
    """Return the callables of plain data, for :class:`dsconvert.safepickle.AllowList`.

    Args:
        classes: whether ``copyreg._reconstructor`` may make objects of a class.
    """
    items, build = frozenset({"setitems"}), frozenset({"build"})
    reconstruct = Call(
        check=_reconstructor(classes), follow=items | build, takes_classes=True, makes_object=True
    )
    numpy_array = Call(check=_array, follow=build, state=_array_state, takes_classes=True)
    return {
        ("collections", "OrderedDict"): Call(
            check=_container, follow=items | build, makes_object=True
        ),
        ("collections", "defaultdict"): Call(check=_default_dict, follow=items, takes_classes=True),
        REBUILD_TENSOR: Call(check=_anything),
        REBUILD_PARAMETER: Call(check=_anything),
        LOAD_FROM_BYTES: Call(check=_anything),
        ("torch", "Size"): Call(check=_container),
        ("torch", "device"): Call(check=_device),
        ("_codecs", "encode"): Call(check=_encode),
        DTYPE: Call(check=_dtype, follow=build, state=_dtype_state),
        **{key: Call(check=_scalar) for key in SCALARS},
        **{(f"{m}.multiarray", "_reconstruct"): numpy_array for m in _NUMPY},
        **{(f"{m}.numeric", "_frombuffer"): Call(check=_from_buffer) for m in _NUMPY},
        **{(m, "_reconstructor"): reconstruct for m in ("copyreg", "copy_reg")},
        **{
            (m, name): Call(check=_container)
            for m in _BUILTINS
            for name in ("set", "frozenset", "list", "tuple", "dict")
        },
        **{(m, "bytes"): Call(check=_nothing) for m in _BUILTINS},
        **{(m, "bytearray"): Call(check=_bytearray) for m in _BUILTINS},
        **{(m, "complex"): Call(check=_floats) for m in _BUILTINS},
    }
