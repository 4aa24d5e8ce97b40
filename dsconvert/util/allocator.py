"""Keep memory that a process has freed for its next request.

glibc gives a large block back to the system as soon as it is freed, and asks for a new one at the
next request: the kernel then clears every map of every layer, page by page, before it is written.
With generators on a CPU that takes 22 to 30 % of the time. ``benchmarks/results/peers.md`` has the
time saved and the rise of the peak. In the environment of any program
``MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2147483647`` has the same effect.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_LARGEST = 2**31 - 1
"""glibc takes an int."""


def keep_freed_memory() -> bool:
    """Make this process keep the memory it frees; return whether the C library can (glibc can).

    This suits a process with a single task of minutes: its memory stays at the peak until it ends.
    Large blocks then come from the heap (``mallopt(3)``: ``M_MMAP_MAX``), whose top is never
    returned (``M_TRIM_THRESHOLD``). A second call is harmless.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    return bool(mallopt(_M_TRIM_THRESHOLD, _LARGEST)) and bool(mallopt(_M_MMAP_MAX, 0))
