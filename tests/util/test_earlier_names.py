"""Scripts that name a module by its earlier name still run, with the very same module."""

from __future__ import annotations

import importlib
import sys
import warnings

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
    before = set(sys.modules)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            earlier = importlib.import_module("dsconvert.train.distill.api")
        assert earlier.distill is importlib.import_module("dsconvert.distill.api").distill
    finally:
        for name in set(sys.modules) - before:
            if name.startswith("dsconvert.train.distill"):
                del sys.modules[name]
