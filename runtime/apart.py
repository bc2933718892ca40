"""Workers stay off the core of the thread that calls.

A scheduler likes to wake a thread where the waker runs, in whose cache it expects what both need. Here both compute until the call ends: on one core
they take as long as one thread does, and it may be tens of milliseconds until one of them is moved. So the caller's core is taken out of the set
of those that its workers may run on (of the caller's own set, which stays as its owner made it), anew whenever the caller has moved. Where
only one core is allowed, or the system cannot say which one it is (Linux can), nothing is done. No result depends on it.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache

NOWHERE = -1


class Apart:
    """Keeps `threads` (their native ids) off the core of whoever calls `keep`."""

    def __init__(self, threads: Sequence[int]) -> None:
        self._threads = threads
        self._cpu = _cpu_number()
        self._avoided = NOWHERE

    def keep(self) -> None:
        """To be called by the thread that is to have a core for itself; cheap while it stays where it is."""
        if self._cpu is None or (cpu := self._cpu()) == self._avoided:
            return
        self._avoided = cpu
        if cpu >= 0 and (others := os.sched_getaffinity(0) - {cpu}):
            for thread in self._threads:
                with suppress(OSError):  # it has ended, or the system forbids it
                    os.sched_setaffinity(thread, others)


@cache
def _cpu_number() -> Callable[[], int] | None:
    """The core that the calling thread runs on; None where nobody says."""
    if sys.platform != "linux":
        return None
    try:
        address = ctypes.cast(ctypes.CDLL(None).sched_getcpu, ctypes.c_void_p).value
    except (AttributeError, OSError):
        return None
    return ctypes.PYFUNCTYPE(ctypes.c_int)(address) if address else None
