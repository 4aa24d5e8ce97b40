"""The allow-list of official snapshots: the classes and callables that honest files refer to.

Names are exact, or a class below a module root; dotted names, private names and anything that
is not here are refused. :class:`dsconvert.safepickle.AllowList` defines the roles.
"""

from __future__ import annotations

import re

from dsconvert.formats.official.persistence import RECONSTRUCT, persistent_args
from dsconvert.safepickle import DTYPES, Call, Key, plain_calls

_MODULE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*", re.ASCII)
_CLASS = re.compile(r"[A-Za-z][A-Za-z0-9_]*", re.ASCII)
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
_FUNCTIONAL = frozenset({
    "interpolate", "relu", "relu6", "leaky_relu", "silu", "gelu", "elu", "hardswish",
    "hardsigmoid", "sigmoid", "tanh", "softplus",
})
# fmt: on
DATA: frozenset[Key] = DTYPES | {("torch.nn.functional", name) for name in _FUNCTIONAL}
"""Names that may stand as plain data, neither called nor used as a class."""

# fmt: off
BEHAVIOUR = frozenset({
    "forward", "train", "eval", "apply", "to", "cuda", "cpu", "named_parameters", "parameters",
    "buffers", "named_buffers", "state_dict", "load_state_dict", "named_modules", "modules",
    "children", "named_children", "requires_grad_", "register_buffer", "register_parameter",
    "add_module", "_call_impl", "_wrapped_call_impl", "_slow_forward", "_apply", "_get_name",
    "extra_repr", "zero_grad", "share_memory", "half", "float", "double", "compile",
})
# fmt: on
"""Attributes that no state may set: they would change how a module behaves."""


def class_allowed(key: Key) -> bool:
    """Return whether objects of this class may be made by ``__new__``."""
    if key in _EXACT_CLASSES:
        return True
    module, name = key
    if _MODULE.fullmatch(module) is None or _CLASS.fullmatch(name) is None:
        return False
    if any(part.startswith("__") for part in module.split(".")):
        return False
    return any(module == root or module.startswith(root + ".") for root in CLASS_ROOTS)


CALLS: dict[Key, Call] = {
    **plain_calls(class_allowed),
    # Which source text an object may bring is decided in policy.py.
    RECONSTRUCT: Call(check=persistent_args),
}
"""Callables that a snapshot may name."""
