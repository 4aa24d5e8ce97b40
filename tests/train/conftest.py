"""What the tests of training share: real images where they are at hand, and made ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from training_parts import encoded, picture, zipped

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def stamps() -> Path:
    """473 real images of 128 px, in the official zip layout."""
    shared = Path(os.environ.get("DSCONVERT_SHARED", ROOT.parent / "shared"))
    path = shared / "data" / "stamps128.zip"
    if not path.is_file():
        pytest.skip(f"the shared images are not at {path}")
    return path


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dozen 64 px pictures of three classes, in the official layout."""
    files = {f"00/img{i:02d}.png": encoded(picture(i, (64, 64))) for i in range(12)}
    pairs = ",".join(f'["{name}", {i % 3}]' for i, name in enumerate(files))
    files["dataset.json"] = f'{{"labels": [{pairs}]}}'.encode()
    return zipped(tmp_path_factory.mktemp("data") / "tiny.zip", files)
