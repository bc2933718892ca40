"""Threads of a program: they run the worker loop of its compiled code, the interpreter's lock released.

While a program runs, its workers spin for pieces of work in machine code; for a moment (`LINGER`) after it they go on, so that runs that
follow each other need not wake them; then they sleep. An idle program uses no time.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .apart import Apart
from .arena import allocate

SIZE = 192
YIELD = 136
"""Where the pool keeps the function that gives up the core."""
IDLE, BUSY, STOP = 0, 1, 2
LINGER = 200e-6
"""Seconds."""
TRIED = 20
"""Spins that measure how long one takes."""

_Worker = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
_Set = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)


class WorkerPool:
    """`threads - 1` workers beside the thread that calls; `addresses` are those of the pool's functions in machine code."""

    def __init__(self, addresses: Mapping[str, int], names: tuple[str, str, str], threads: int, owner: object) -> None:
        self.threads = threads
        self.parallel_for = addresses[names[0]]
        self._shared = allocate(SIZE)
        self.address = int(self._shared.ctypes.data)
        """Of the memory that the threads share."""
        self._set = _Set(addresses[names[2]])
        self._turn = threading.Lock()
        worker = _Worker(addresses[names[1]])
        spins = _spins(worker, self.address)
        self._shared[YIELD : YIELD + 8].view(np.uint64)[0] = _yield_address()
        self._wakes = [threading.Event() for _ in range(threads - 1)]
        arguments = [(worker, spins, self._shared, wake, owner) for wake in self._wakes]
        workers = [threading.Thread(target=_work, args=a, name="qcompiler worker", daemon=True) for a in arguments]
        for w in workers:
            w.start()
        self._apart = Apart([w.native_id for w in workers if w.native_id is not None])
        self._end = weakref.finalize(self, _stop, self._set, self._shared, self._wakes, workers)

    def claim(self) -> bool:
        """Whether the workers are awake and ours until `release`; not if another call has them.

        Who still spins from the last call is not woken: a worker clears its event before it looks at the state, which is set here before
        the event is looked at."""
        if not self._turn.acquire(blocking=False):
            return False
        self._apart.keep()
        self._set(self.address, BUSY)
        for wake in self._wakes:
            if not wake.is_set():
                wake.set()
        return True

    def release(self) -> None:
        """The workers are free."""
        self._set(self.address, IDLE)
        self._turn.release()

    def close(self) -> None:
        """End the workers."""
        self._end()


def _yield_address() -> int:
    """sched_yield of libc, or SwitchToThread of Windows; 0 where there is neither."""
    try:
        library: Any = ctypes.windll.kernel32 if sys.platform == "win32" else ctypes.CDLL(None)  # type: ignore[attr-defined,unused-ignore]
        function = library.SwitchToThread if sys.platform == "win32" else library.sched_yield
        return ctypes.cast(function, ctypes.c_void_p).value or 0
    except (AttributeError, OSError):
        return 0


def _spins(worker: Any, address: int) -> int:
    """How many spins take about `LINGER`."""
    start = perf_counter()
    worker(address, TRIED)
    return int(min(max(TRIED * LINGER / max(perf_counter() - start, 1e-9), 2), 1e3))


def _work(worker: Any, spins: int, shared: NDArray[np.uint8], wake: threading.Event, owner: object) -> None:
    """A worker's life. The event is cleared before the state is looked at, so that no wake-up is lost."""
    address, state = int(shared.ctypes.data), shared[128:132].view(np.int32)
    while True:
        wake.clear()
        if state[0] == IDLE:
            wake.wait()
        if worker(address, spins) == 0:
            return


def _stop(set_state: Any, shared: NDArray[np.uint8], wakes: Sequence[threading.Event], workers: Sequence[threading.Thread]) -> None:
    set_state(int(shared.ctypes.data), STOP)
    for wake, worker in zip(wakes, workers):
        wake.set()
        if worker is not threading.current_thread():
            worker.join(timeout=1.0)
