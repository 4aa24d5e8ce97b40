from __future__ import annotations

import os
import sys
import types
from pathlib import Path

import pytest
import torch
from dsconvert_adapters import stylegan2
from dsconvert_adapters.projected_gan import ADAPTER, Generator

from dsconvert.formats.official import new_snapshot, save_snapshot

ROOT = Path(__file__).resolve().parents[3]


def shared_folder() -> Path:
    return Path(os.environ.get("DSCONVERT_SHARED", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = shared_folder() / "snapshots"
    if not folder.is_dir():
        pytest.skip(f"the shared snapshots are not at {folder}")
    return folder


def small_generator(**config: object) -> Generator:
    torch.manual_seed(1)
    settings = {"resolution": 128, "ngf": 2, "z_dim": 8, **config}
    made = Generator.from_config(**settings)  # type: ignore[arg-type]
    for name, parameter in made.named_parameters():
        if name.endswith("weight") and parameter.numel() == 1:
            parameter.data.fill_(0.3)  # noise injection starts at zero
    return made


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small real snapshot, written by our own writer; needs nothing that is not in the repo."""
    path = tmp_path_factory.mktemp("small") / "small.pkl"
    generator = small_generator()
    save_snapshot(new_snapshot(generator), generator, path)
    return path


@pytest.fixture(scope="session")
def persistent_small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StyleGAN2 file of the persistence kind, by our own writer (its source text is ours)."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("persistent") / "stylegan2.pkl"
    generator = stylegan2.Generator(
        8, 0, 8, 8, 3, {"num_layers": 1}, channel_base=32, channel_max=4
    )
    save_snapshot(new_snapshot(generator), generator, path)
    return path


@pytest.fixture(scope="session", autouse=True)
def official_names() -> object:
    """Let plain ``pickle.load`` resolve the official class names, to our classes."""
    before = {name: sys.modules.get(name) for name in ("pg_modules",)}
    made: list[str] = []
    for (module, name), kind in ADAPTER.classes.items():
        if module not in sys.modules:
            sys.modules[module] = types.ModuleType(module)
            made.append(module)
        if not hasattr(sys.modules[module], name):
            setattr(sys.modules[module], name, kind)
    if before["pg_modules"] is None:
        sys.modules["pg_modules"] = types.ModuleType("pg_modules")
        made.append("pg_modules")
    yield None
    for module in made:
        sys.modules.pop(module, None)
