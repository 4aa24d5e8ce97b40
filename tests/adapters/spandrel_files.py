"""Small files in the layouts of spandrel's codebases, made by spandrel's own architectures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

PICTURES = torch.rand(2, 3, 12, 16, generator=torch.Generator().manual_seed(5))


def library() -> Any:
    return pytest.importorskip("spandrel", reason="the package spandrel is not installed")


def seeded(kind: type[nn.Module], **arguments: Any) -> nn.Module:
    """Build a model whose output differs from a mere enlargement of its input."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(**arguments).eval()
        for parameter in model.parameters():
            parameter.data.mul_(1.5)
    return model


def compact() -> nn.Module:
    library()
    from spandrel.architectures.Compact import Compact

    return seeded(Compact, num_feat=16, num_conv=3, upscale=2)


def rrdb() -> nn.Module:
    library()
    from spandrel.architectures.ESRGAN import ESRGAN

    return seeded(ESRGAN, num_filters=16, num_blocks=2, scale=4)


def as_realesrgan(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return an RRDB of 2 blocks, x4, under the names of the Real-ESRGAN repository."""
    rules = (
        (r"model\.1\.sub\.(\d)\.RDB(\d)\.conv(\d)\.0\.", r"body.\1.rdb\2.conv\3."),
        (r"model\.1\.sub\.2\.", "conv_body."),
        (r"model\.0\.", "conv_first."),
        (r"model\.3\.", "conv_up1."),
        (r"model\.6\.", "conv_up2."),
        (r"model\.8\.", "conv_hr."),
        (r"model\.10\.", "conv_last."),
    )
    made: dict[str, Tensor] = {}
    for name, value in state.items():
        new = name
        for pattern, replacement in rules:
            new = re.sub(f"^{pattern}", replacement, new)
        made[new] = value
    assert len(made) == len(state)
    return made


def written(content: Any, path: Path) -> Path:
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(content, path)
    else:
        torch.save(content, path)
    return path


def run(model: nn.Module, pictures: Tensor = PICTURES) -> Tensor:
    with torch.no_grad():
        return model.eval()(pictures)
