"""Scripts that name a module by its earlier name still run, with the very same module."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from dsconvert.util.earlier_names import MOVED


@pytest.mark.parametrize("earlier", MOVED)
def test_the_earlier_name_is_the_same_module(earlier: str) -> None:
    sys.modules.pop(earlier, None)
    now = importlib.import_module(MOVED[earlier])
    spec = now.__spec__
    with pytest.warns(DeprecationWarning, match=MOVED[earlier]):
        assert importlib.import_module(earlier) is now
    assert now.__spec__ is spec


def test_a_module_in_a_package_moves_with_it() -> None:
    code = (
        "from dsconvert.train.distill.api import distill as earlier\n"
        "from dsconvert.distill.api import distill\n"
        "assert earlier is distill"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
