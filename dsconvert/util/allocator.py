"""Memory that a process has freed, kept for its next request.

glibc gives a large block back to the system as soon as it is freed, and asks for a new one at the
next request: every map of every layer is then cleared by the kernel, page by page, before it is
written. With generators on a CPU that takes 22 to 30 % of the time; what it saves, and how much
higher the peak becomes, is in ``benchmarks/results/peers.md``. In the environment of any program
``MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2147483647`` does the same.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_LARGEST = 2**31 - 1
"""glibc takes an int."""


def keep_freed_memory() -> bool:
    """Let this process keep what it frees; True where the C library can (glibc).

    For a process that does one thing for minutes: what it holds stays at its peak until it ends.
    Large blocks come from the heap then (``mallopt(3)``: ``M_MMAP_MAX``), whose top is never cut
    off (``M_TRIM_THRESHOLD``). Calling it again is harmless.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    return bool(mallopt(_M_TRIM_THRESHOLD, _LARGEST)) and bool(mallopt(_M_MMAP_MAX, 0))
