"""The same labelled picture seen in other ways: mirrored, and moved by two pixels up, down, left or right.

Which of the answers near a boundary change is luck, and a thousand labels are few: where 70 answers of either of two networks change, the difference
of their accuracies has a standard error of most of a point. Pictures that are mirrored and moved have the same labels, and other answers near the
boundary: image classifiers are trained on such pictures (He et al. 2016, "Deep Residual Learning", section 4.2: mirrored, and moved by up to four
pixels of 32).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from benchmarks.zoo import Array, Feeds
from qcompiler.errors import UsageError


@dataclass(frozen=True)
class View:
    """Pictures [1, 3, height, width] moved by so many pixels; what comes in from outside has the colours of the edge."""

    down: int = 0
    right: int = 0
    mirrored: bool = False

    def __call__(self, sample: Feeds) -> Feeds:
        return {name: self._of(name, x) for name, x in sample.items()}

    def _of(self, name: str, x: Array) -> Array:
        if self == View():
            return x
        if x.ndim != 4 or x.shape[1] != 3:
            raise UsageError(f"only pictures can be mirrored and moved: expected [1, 3, height, width], found {list(x.shape)} ({name!r})")
        height, width = x.shape[2:]
        rows, columns = (np.clip(np.arange(n) - by, 0, n - 1) for n, by in ((height, self.down), (width, self.right)))
        moved = x[:, :, rows[:, None], columns]
        return np.ascontiguousarray(moved[..., ::-1] if self.mirrored else moved)


PLAIN = (View(),)
MOVED = tuple(View(down, right, mirrored) for mirrored, down, right in product((False, True), (0, -2, 2), (0, -2, 2)))
"""All eighteen, as it is first."""
