"""What keeping freed memory does, in a process of its own: it can't be undone."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import dsconvert
from dsconvert.util.allocator import keep_freed_memory

_CODE = """
import json, resource, sys
from dsconvert.util.allocator import keep_freed_memory

kept = keep_freed_memory() if sys.argv[1] == "keep" else None

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        b"x" * (48 << 20)  # 48 MiB: above every threshold of its own
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

for _ in range(4):
    faults()
print(json.dumps([kept, faults()]))
"""


def _run(word: str) -> tuple[bool | None, int]:
    done = subprocess.run(
        [sys.executable, "-c", _CODE, word], capture_output=True, text=True, check=True
    )
    kept, faults = json.loads(done.stdout)
    return kept, faults


def test_it_is_public_and_needs_no_torch() -> None:
    code = "import dsconvert, sys; dsconvert.keep_freed_memory(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert dsconvert.keep_freed_memory is keep_freed_memory
    assert "keep_freed_memory" in dsconvert.__all__


@pytest.mark.slow
def test_kept_memory_is_not_cleared_again() -> None:
    _, usual = _run("leave")
    kept, fewer = _run("keep")
    if not kept:
        pytest.skip("not glibc: nothing can be kept")
    # 4096 bytes a page: 48 MiB are 12288 of them, each time.
    assert usual > 10 * (fewer + 1)
