"""Checkpoints of other codebases, small, with nothing left at its initial value."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest
import torch
from dsconvert_adapters.fastgan_pytorch import Generator
from made_models import fastgan_content, moved


@pytest.fixture(scope="session")
def fastgan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ``all_N.pth`` in FastGAN-pytorch's layout, made by our architecture."""
    path = tmp_path_factory.mktemp("fastgan") / "all_7.pth"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        raw = moved(Generator(ngf=4, nz=16, im_size=256))
        torch.manual_seed(1)
        averaged = moved(Generator(ngf=4, nz=16, im_size=256))
    torch.save(fastgan_content(raw, averaged), path)
    return path


@pytest.fixture(scope="session")
def fastgan_code() -> ModuleType:
    """``models.py`` of a checkout of FastGAN-pytorch (GPL: it is not part of this repository)."""
    root = os.environ.get("FASTGAN_ROOT")
    if not root or not (Path(root) / "models.py").is_file():
        pytest.skip("FASTGAN_ROOT does not point to a checkout of odegeasslbc/FastGAN-pytorch")
    spec = importlib.util.spec_from_file_location("fastgan_models", Path(root) / "models.py")
    assert spec is not None
    assert spec.loader is not None
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    return code


@pytest.fixture(scope="session")
def lightweight_code() -> ModuleType:
    """lucidrains' package, which refuses to be imported where there is no GPU."""
    with mock.patch("torch.cuda.is_available", return_value=True):
        return pytest.importorskip(
            "lightweight_gan.lightweight_gan",
            reason="the PyPI package lightweight-gan is not installed",
            exc_type=ImportError,
        )
