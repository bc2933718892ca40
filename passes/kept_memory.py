"""Memory that is given back and asked for again thousands of times stays with the process meanwhile.

Large blocks come from the kernel and go back to it, where every page is cleared again: of a step of tuning MobileNetV2 that was a fifth of the time
(AMD EPYC, Zen 3). mallopt(3) of glibc keeps them; other C libraries are left as they are.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

TRIM_THRESHOLD, MMAP_MAX = -1, -4
"""Parameters of mallopt: the free bytes at the end of the heap that are kept, and how many blocks may be asked of the kernel one by one."""
KEEPING = {TRIM_THRESHOLD: 2**31 - 1, MMAP_MAX: 0}
FREE = {TRIM_THRESHOLD: 1 << 26, MMAP_MAX: 1 << 16}
"""As glibc has it, where its own adaptation to large blocks ends."""


@contextmanager
def kept_memory() -> Iterator[None]:
    """Within, nothing that is freed goes back to the kernel; behind it, everything does that did."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is None or not hasattr(library, "mallopt"):
        yield
        return
    try:
        _set(library, KEEPING)
        yield
    finally:
        _set(library, FREE)
        library.malloc_trim(0)


def _set(library: ctypes.CDLL, parameters: dict[int, int]) -> None:
    for parameter, value in parameters.items():
        library.mallopt(parameter, value)
