"""Independent pieces of work side by side, a core each, in their order.

Where a piece is one run of a network, all cores for one piece after the other would wait for each other in every layer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from os import cpu_count
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def abreast(work: Callable[[A], B], pieces: Iterable[A]) -> Iterator[B]:
    """What `work` makes of each: as many at once as there are cores, and as many results ahead of those who read them."""
    cores, pending = cpu_count() or 1, deque[Future[B]]()
    with ThreadPoolExecutor(cores) as pool:
        for piece in pieces:
            pending.append(pool.submit(work, piece))
            if len(pending) > cores:
                yield pending.popleft().result()
        yield from (future.result() for future in pending)
