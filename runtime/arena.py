"""Working memory of programs: page-aligned blocks that concurrent calls borrow from a pool."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 64
"""What programs require; `allocate` gives whole pages, so that emulators can map them as they are."""

_PRIVATE: dict[str, int] = (
    {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_POPULATE", 0)} if hasattr(mmap, "MAP_ANONYMOUS") else {}
)


def allocate(size: int) -> NDArray[np.uint8]:
    """`size` zero bytes that begin on a page; the array keeps the mapping alive. Pages are present from the start where the system does
    that: a program uses them all, and one by one they would cost its first call a fifth of its time."""
    return np.frombuffer(mmap.mmap(-1, max(size, 1), **_PRIVATE), np.uint8)[:size]


class ArenaPool:
    """Arenas of one size: as many as there were concurrent calls, whatever the threads."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._free: list[NDArray[np.uint8]] = []

    def take(self) -> NDArray[np.uint8]:
        """An arena for the time of a call (list.pop and list.append are atomic)."""
        try:
            return self._free.pop()
        except IndexError:
            return allocate(self.size)

    def give_back(self, arena: NDArray[np.uint8]) -> None:
        """The call is over."""
        self._free.append(arena)

    @contextmanager
    def lend(self) -> Iterator[NDArray[np.uint8]]:
        """`take`, and `give_back` at the end."""
        arena = self.take()
        try:
            yield arena
        finally:
            self.give_back(arena)
