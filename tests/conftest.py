"""Fixtures that more than one folder of tests uses."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest
import torch
from dsconvert_adapters import fastgan_pytorch
from dsconvert_adapters.projected_gan import Generator

from dsconvert.formats.official import new_snapshot, save_snapshot
from tests.made_models import drifted, fastgan_content, moved, moved_generator

if not torch.cuda.is_available():
    # Triton, which reads this when it is imported, then runs kernels on a CPU.
    os.environ.setdefault("TRITON_INTERPRET", "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As a shell starts what it puts into the background; tests of Ctrl-C would wait for ever.
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]
_FRESH = "DSCONVERT_TESTS_FRESH"


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is marked ``fresh_process`` by a pytest of its own.

    Once autograd has started threads in a process, its forks can't use it; which tests ran before
    in a worker is a matter of chance.
    """
    if pyfuncitem.get_closest_marker("fresh_process") is None or os.environ.get(_FRESH):
        return None
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, pyfuncitem.nodeid],
        cwd=ROOT,
        # Not the outer options: its --basetemp would be emptied by this pytest.
        env=os.environ | {_FRESH: "1", "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.fail(f"in a process of its own:\n{done.stdout[-6000:]}{done.stderr[-2000:]}")
    return True


def written(made: Generator, path: Path) -> Path:
    save_snapshot(new_snapshot(made), made, path)
    return path


@pytest.fixture(scope="session")
def snapshot_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unconditional 128 px snapshot, ngf 4."""
    return written(moved_generator(), tmp_path_factory.mktemp("plain") / "generator.pkl")


@pytest.fixture(scope="session")
def conditional_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conditional 128 px snapshot, three classes, ngf 2."""
    made = moved_generator(ngf=2, classes=3)
    return written(made, tmp_path_factory.mktemp("conditional") / "conditional.pkl")


@pytest.fixture(scope="session")
def shared_snapshots() -> Path:
    """The folder of snapshots that the official code wrote (not part of the repository)."""
    folder = Path(os.environ.get("DSCONVERT_SHARED", ROOT.parent / "shared")) / "snapshots"
    if not folder.is_dir():
        pytest.skip(f"the shared snapshots are not at {folder}")
    return folder


@pytest.fixture(scope="session")
def stamps() -> Path:
    """473 real images of 128 px, in the official zip layout (not part of the repository)."""
    shared = Path(os.environ.get("DSCONVERT_SHARED", ROOT.parent / "shared"))
    path = shared / "data" / "stamps128.zip"
    if not path.is_file():
        pytest.skip(f"the shared images are not at {path}")
    return path


@pytest.fixture(scope="session")
def fastgan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ``all_N.pth`` in FastGAN-pytorch's layout, made by our architecture."""
    path = tmp_path_factory.mktemp("fastgan") / "all_7.pth"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        raw = moved(fastgan_pytorch.Generator(ngf=4, nz=16, im_size=256))
    torch.save(fastgan_content(raw, drifted(raw)), path)
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
