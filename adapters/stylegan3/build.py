"""A generator from facts: what a safetensors file says of its architecture.

Layers of StyleGAN3 can't be told from a few options: StyleGAN-XL stacks new ones behind trained
ones. So the facts list them, and a generator of those facts is made in the official layout, without
running any constructor, and goes through the checks that a pickle's content goes through.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from . import architecture
from .restore import restored

_WIDTH = 1 << 16


def layer_facts(layer: Any) -> dict[str, Any]:
    """Facts about one :class:`~.architecture.SynthesisLayer`; also of a converted one."""
    convs = list(layer.kernel.children()) or [layer.kernel]
    return {
        "kernel": max(c.kernel_size[0] for c in convs),
        "inputs": layer.in_channels,
        "outputs": layer.out_channels,
        "up": layer.up_factor,
        "down": layer.down_factor,
        "padding": list(layer.padding),
        # Taps of the filters; two numbers of a radial one; none where there is no filter.
        "up_filter": _shape(layer.up_filter),
        "down_filter": _shape(layer.down_filter),
        "clamp": layer.conv_clamp,
        "beta": layer.magnitude_ema_beta,
        "affine": _linear(layer.affine),
        "scale": layer.scale,
    }


def mapping_facts(mapping: Any) -> dict[str, Any]:
    """Facts about a :class:`~.architecture.MappingNetwork`."""
    inside = mapping._modules
    embed, projection = inside.get("embed"), inside.get("embed_proj")
    return {
        "fully_connected": [_linear(inside[f"fc{i}"]) for i in range(mapping.num_layers)],
        "table": list(embed.weight.shape) if isinstance(embed, nn.Embedding) else None,
        "embed": _linear(embed) if isinstance(embed, architecture.FullyConnectedLayer) else None,
        "projection": None if projection is None else _linear(projection),
        "beta": mapping.w_avg_beta,
    }


def input_facts(features: Any) -> dict[str, Any]:
    """Facts about a :class:`~.architecture.SynthesisInput`."""
    return {
        "waves": features.conv.in_channels,
        "outputs": features.channels,
        "side": features.side,
        "sampling_rate": features.sampling_rate,
        "bandwidth": features.bandwidth,
        "scale": features.scale,
        "affine": _linear(features.affine),
    }


def built(facts: Mapping[str, Any]) -> nn.Module:
    """Make a generator of the facts that the adapter describes; its tensors hold zeros.

    Raises:
        KeyError, TypeError, ValueError: there is no such generator.
    """
    sizes = {
        "z_dim": _width(facts["z_dim"]),
        "c_dim": _width(facts["classes"], least=0),
        "w_dim": _width(facts["w_dim"]),
    }
    images = {
        "img_resolution": _width(facts["resolution"]),
        "img_channels": _width(facts["img_channels"]),
    }
    layers: Mapping[str, Any] = facts["structure"]
    last = list(layers)[-1]
    children: dict[str, nn.Module] = {"input": _input(facts["input"])}
    for name, each in layers.items():
        children[str(name)] = _layer(each, image=name == last)
    synthesis = _made(
        architecture.SynthesisNetwork,
        {"w_dim": sizes["w_dim"], **images, "output_scale": _number(facts["output_scale"])},
        children=children,
    )
    mapping = _mapping(facts["mapping"], sizes, count=len(layers) + 1)
    kind = architecture.SuperresGenerator if facts["stacked"] else architecture.Generator
    return _made(kind, sizes | images, children={"synthesis": synthesis, "mapping": mapping})


def _mapping(facts: Mapping[str, Any], sizes: Mapping[str, int], *, count: int) -> nn.Module:
    layers = [_fully_connected(**each) for each in facts["fully_connected"]]
    children: dict[str, nn.Module] = {f"fc{i}": layer for i, layer in enumerate(layers)}
    if facts["table"] is not None:
        rows, columns = facts["table"]
        children["embed"] = nn.Embedding(_width(rows), _width(columns))
    if facts["embed"] is not None:
        children["embed"] = _fully_connected(**facts["embed"])
    if facts["projection"] is not None:
        children["embed_proj"] = _fully_connected(**facts["projection"])
    by_class = sizes["c_dim"] > 0 and "embed_proj" in children
    mean = (sizes["c_dim"], sizes["w_dim"]) if by_class else (sizes["w_dim"],)
    beta = None if facts["beta"] is None else _number(facts["beta"])
    return _made(
        architecture.MappingNetwork,
        {**sizes, "num_ws": count, "num_layers": len(layers), "w_avg_beta": beta},
        buffers={"w_avg": torch.zeros(mean)},
        children=children,
    )


def _input(facts: Mapping[str, Any]) -> nn.Module:
    waves, outputs = _width(facts["waves"]), _width(facts["outputs"])
    made = _made(
        architecture.SynthesisInput,
        {
            "side": _width(facts["side"]),
            "sampling_rate": _number(facts["sampling_rate"]),
            "bandwidth": _number(facts["bandwidth"]),
        },
        parameters={"weight": torch.zeros(outputs, waves)},
        buffers={
            "transform": torch.zeros(3, 3),
            "freqs": torch.zeros(waves, 2),
            "phases": torch.zeros(waves),
        },
        children={"affine": _fully_connected(**facts["affine"])},
    )
    made.scale = _number(facts["scale"])
    return made


def _layer(facts: Mapping[str, Any], *, image: bool) -> nn.Module:
    outputs, inputs, size = (_width(facts[k]) for k in ("outputs", "inputs", "kernel"))
    clamp = facts["clamp"]
    made = _made(
        architecture.SynthesisLayer,
        {
            "is_torgb": image,
            "up_factor": _width(facts["up"]),
            "down_factor": _width(facts["down"]),
            "padding": list(facts["padding"]),
            "magnitude_ema_beta": _number(facts["beta"]),
            "conv_clamp": None if clamp is None else _number(clamp),
        },
        parameters={
            "weight": torch.zeros(outputs, inputs, size, size),
            "bias": torch.zeros(outputs),
        },
        buffers={
            "magnitude_ema": torch.zeros([]),
            "up_filter": _filter(facts["up_filter"]),
            "down_filter": _filter(facts["down_filter"]),
        },
        children={"affine": _fully_connected(**facts["affine"])},
    )
    if image:
        made.scale = _number(facts["scale"])
    return made


def _linear(layer: architecture.FullyConnectedLayer) -> dict[str, Any]:
    return {
        "inputs": layer.in_features,
        "outputs": layer.out_features,
        "activation": layer.activation,
        "rate": layer.bias_gain,
        "bias": layer._parameters["bias"] is not None,
    }


def _fully_connected(inputs: Any, outputs: Any, activation: Any, rate: Any, bias: Any) -> nn.Module:
    outputs = _width(outputs)
    parameters = {"weight": torch.zeros(outputs, _width(inputs))}
    if bias:
        parameters["bias"] = torch.zeros(outputs)
    values = {"activation": str(activation), "bias_gain": _number(rate)}
    return _made(architecture.FullyConnectedLayer, values, parameters=parameters)


def _made(
    kind: type[nn.Module],
    values: Mapping[str, Any],
    *,
    parameters: Mapping[str, Tensor] | None = None,
    buffers: Mapping[str, Tensor | None] | None = None,
    children: Mapping[str, nn.Module] | None = None,
) -> Any:
    """Return a module of ``kind`` in the official layout, brought into ours and checked."""
    made: Any = kind.__new__(kind)
    nn.Module.__init__(made)
    vars(made).update(values)
    for name, tensor in (parameters or {}).items():
        made.register_parameter(name, nn.Parameter(tensor))
    for name, tensor in (buffers or {}).items():
        made.register_buffer(name, tensor)
    for name, child in (children or {}).items():
        made.add_module(name, child)
    if (problem := restored(made)) is not None:
        raise ValueError(f"a {kind.__name__} that {problem}")
    return made


def _shape(fir: Tensor | None) -> list[int]:
    return [] if fir is None else list(fir.shape)


def _filter(shape: list[Any]) -> Tensor | None:
    return torch.zeros([_width(s) for s in shape]) if shape else None


def _width(value: Any, least: int = 1) -> int:
    if type(value) is not int or not least <= value <= _WIDTH:
        raise ValueError(f"a size of {value!r}, which is none of {least} to {_WIDTH}")
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{value!r} in the place of a number")
    return value
