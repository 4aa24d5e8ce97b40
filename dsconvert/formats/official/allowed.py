"""The allow-list: which names a snapshot may refer to, in which role, with which arguments.

Names are exact, or a class below a module root; dotted names, private names and anything that
is not here are refused. A name in the list still never runs *here*; the list decides what is
written back for the official code to load.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dsconvert.formats.official.persistence import RECONSTRUCT, persistent_args
from dsconvert.safepickle.nodes import Blob, DictNode, Global, Node, Record, tuple_of

if TYPE_CHECKING:
    from collections.abc import Callable

Key = tuple[str, str]

_MODULE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*", re.ASCII)
_CLASS = re.compile(r"[A-Za-z][A-Za-z0-9_]*", re.ASCII)
_NUMERIC_DTYPE = re.compile(r"[<>|=]?(?:[biufcSUV]\d{1,6}|\?)", re.ASCII)

CLASS_ROOTS = (
    "torch.nn.modules",
    "torch.nn.quantized",
    "torch.ao.nn.quantized",
    "timm.models",
    "timm.layers",
    "pg_modules",
)
"""Modules whose classes may be made by ``__new__`` without arguments and given inert state."""

SPECTRAL = "torch.nn.utils.spectral_norm"
HOOK_CLASSES: frozenset[Key] = frozenset(
    {
        (SPECTRAL, "SpectralNorm"),
        (SPECTRAL, "SpectralNormStateDictHook"),
        (SPECTRAL, "SpectralNormLoadStateDictPreHook"),
        ("torch.nn.utils.weight_norm", "WeightNorm"),
        ("torch.nn.modules.module", "_WrappedHook"),
    }
)
"""The only objects that may sit among a module's hooks."""

_EXACT_CLASSES = HOOK_CLASSES | {("dnnlib.util", "EasyDict")}

# fmt: off
_DTYPES = frozenset({
    "float64", "double", "float32", "float", "float16", "half", "bfloat16", "int64", "long",
    "int32", "int", "int16", "short", "int8", "uint8", "bool", "complex64", "complex128",
})
# fmt: on
# fmt: off
_FUNCTIONAL = frozenset({
    "interpolate", "relu", "relu6", "leaky_relu", "silu", "gelu", "elu", "hardswish",
    "hardsigmoid", "sigmoid", "tanh", "softplus",
})
# fmt: on
BARE: frozenset[Key] = frozenset(
    {("torch", name) for name in _DTYPES} | {("torch.nn.functional", name) for name in _FUNCTIONAL}
)
"""Names that may stand as plain data, not called and not a class."""

_BUILTINS = ("builtins", "__builtin__")
_FACTORY_NAMES = ("list", "dict", "int", "float", "set", "str")
_FACTORIES = frozenset((m, n) for m in _BUILTINS for n in _FACTORY_NAMES)


def class_allowed(key: Key) -> bool:
    """Whether objects of this class may be made by ``__new__``."""
    if key in _EXACT_CLASSES:
        return True
    module, name = key
    if _MODULE.fullmatch(module) is None or _CLASS.fullmatch(name) is None:
        return False
    if any(part.startswith("__") for part in module.split(".")):
        return False
    return any(module == root or module.startswith(root + ".") for root in CLASS_ROOTS)


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
    return _is_call(node, ("numpy", "dtype"))


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


def _reconstructor(args: tuple[Node, ...]) -> bool:
    if len(args) != 3 or type(args[0]) is not Global or type(args[1]) is not Global:
        return False
    if args[1].key[0] not in _BUILTINS or not class_allowed(args[0].key):
        return False
    base = args[1].name
    return (base == "object" and args[2] is None) or (base == "dict" and type(args[2]) is DictNode)


def _anything(args: tuple[Node, ...]) -> bool:
    return len(args) <= 7  # tensors and storages have a check of their own, see policy.py


_NUMPY = ("numpy.core", "numpy._core")
CALLS: dict[Key, tuple[Callable[[tuple[Node, ...]], bool], frozenset[str]]] = {
    ("collections", "OrderedDict"): (_container, frozenset({"setitems", "build"})),
    ("collections", "defaultdict"): (_default_dict, frozenset({"setitems"})),
    ("torch._utils", "_rebuild_tensor_v2"): (_anything, frozenset()),
    ("torch._utils", "_rebuild_parameter"): (_anything, frozenset()),
    ("torch.storage", "_load_from_bytes"): (_anything, frozenset()),
    RECONSTRUCT: (persistent_args, frozenset()),  # whose source it may be: see policy.py
    ("torch", "Size"): (_container, frozenset()),
    ("torch", "device"): (_device, frozenset()),
    ("_codecs", "encode"): (_encode, frozenset()),
    ("numpy", "dtype"): (_dtype, frozenset({"build"})),
    **{(f"{m}.multiarray", "scalar"): (_scalar, frozenset[str]()) for m in _NUMPY},
    **{(f"{m}.multiarray", "_reconstruct"): (_array, frozenset({"build"})) for m in _NUMPY},
    **{(f"{m}.numeric", "_frombuffer"): (_from_buffer, frozenset[str]()) for m in _NUMPY},
    **{
        (m, "_reconstructor"): (_reconstructor, frozenset({"setitems", "build"}))
        for m in ("copyreg", "copy_reg")
    },
    **{
        (m, name): (_container, frozenset[str]())
        for m in _BUILTINS
        for name in ("set", "frozenset", "list", "tuple", "dict")
    },
    **{(m, "bytes"): (_nothing, frozenset[str]()) for m in _BUILTINS},
    **{(m, "bytearray"): (_bytearray, frozenset[str]()) for m in _BUILTINS},
    **{(m, "complex"): (_floats, frozenset[str]()) for m in _BUILTINS},
}
"""Callables a pickle may name: a check of the arguments, and what may follow the call."""


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


STATES: dict[Key, Callable[[Node], bool]] = {
    ("numpy", "dtype"): _dtype_state,
    **{(f"{m}.multiarray", "_reconstruct"): _array_state for m in _NUMPY},
}
"""Calls whose result is given a state of its own kind, and a check of it."""

CLASS_ARGUMENTS: frozenset[Key] = frozenset(
    {
        ("copyreg", "_reconstructor"),
        ("copy_reg", "_reconstructor"),
        ("collections", "defaultdict"),
        *((f"{m}.multiarray", "_reconstruct") for m in _NUMPY),
    }
)
"""Calls whose own check vouches for the globals among their arguments."""


def forbidden_attribute(name: Node) -> bool:
    """Whether state may not set this attribute: it would change how an object behaves."""
    if type(name) is not str:
        return True
    return (name.startswith("__") and name.endswith("__")) or name in _BEHAVIOUR


# fmt: off
_BEHAVIOUR = frozenset({
    "forward", "train", "eval", "apply", "to", "cuda", "cpu", "named_parameters", "parameters",
    "buffers", "named_buffers", "state_dict", "load_state_dict", "named_modules", "modules",
    "children", "named_children", "requires_grad_", "register_buffer", "register_parameter",
    "add_module", "_call_impl", "_wrapped_call_impl", "_slow_forward", "_apply", "_get_name",
    "extra_repr", "zero_grad", "share_memory", "half", "float", "double", "compile",
})
# fmt: on
