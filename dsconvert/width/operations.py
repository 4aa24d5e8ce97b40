"""The functions and tensor methods whose effect on channels is known, by name.

A name without its trailing underscore (``relu_``) stands for the function of ``torch``, of
``torch.nn.functional`` and of ``operator``, and for the method of a tensor.
"""

from __future__ import annotations

from torch import fx

MOVING = frozenset({
    "view", "reshape", "flatten", "unflatten", "permute", "transpose", "swapaxes", "movedim", "t",
    "squeeze", "unsqueeze", "getitem", "chunk", "split", "tensor_split", "unbind", "cat", "concat",
    "stack", "expand", "expand_as", "repeat", "tile", "repeat_interleave", "flip", "roll",
    "narrow", "index_select", "contiguous", "clone", "detach", "view_as", "reshape_as",
    "pixel_unshuffle",
})  # fmt: skip
"""They move elements and compute nothing."""
ELEMENTWISE = frozenset({
    "add", "sub", "mul", "truediv", "div", "multiply", "subtract", "divide", "iadd", "isub", "imul",
    "itruediv", "radd", "rsub", "rmul", "maximum", "minimum", "lerp", "addcmul", "where", "pow",
    "ipow", "square", "sqrt", "rsqrt", "exp", "log", "abs", "neg", "sign", "sin", "cos", "clamp",
    "clip", "clamp_min", "clamp_max", "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu",
    "silu", "mish", "sigmoid", "logsigmoid", "tanh", "hardtanh", "hardswish", "hardsigmoid",
    "softplus", "softsign", "threshold", "dropout", "to", "float", "half", "double", "bfloat16",
    "type", "type_as", "reciprocal", "floor", "round", "nan_to_num", "rrelu", "softshrink",
    "hardshrink", "tanhshrink", "alpha_dropout",
})  # fmt: skip
"""An element of the result depends on the elements of the arguments at its own place."""
SPATIAL = frozenset({
    "interpolate", "upsample", "upsample_nearest", "upsample_bilinear", "avg_pool1d", "avg_pool2d",
    "max_pool1d", "max_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "adaptive_max_pool1d", "adaptive_max_pool2d", "lp_pool1d", "lp_pool2d", "pad", "dropout1d",
    "dropout2d", "feature_dropout", "grid_sample", "instance_norm",
})  # fmt: skip
"""They work within each channel, and keep the number of channels."""
REDUCING = frozenset({"mean", "sum", "amax", "amin", "var", "std"})
"""They remove the named dimensions."""


def reduced_dims(node: fx.Node, ndim: int) -> frozenset[int] | None:
    """Return the dimensions that a reduction removes; None where they are not literal numbers."""
    given = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    dims = (given,) if isinstance(given, int) else given
    if not isinstance(dims, tuple | list):
        return None
    found: set[int] = set()
    for d in dims:
        if not isinstance(d, int):
            return None
        found.add(d % ndim)
    return frozenset(found)
