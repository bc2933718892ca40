"""Inputs in the manner of calibration samples, as many as are wanted: mixtures of two.

    x = (1 - a) x_i + a x_j        i, j any samples, a up to `MIXED`

after Zhang et al. 2018, "mixup". Nothing is assumed of what they show: the float network says what the right answer is. Integers are drawn, but not
mixed. Parts of pictures and mirrored ones were tried: of handwritten digits they are no digits, and tuning for them spoils the answers to digits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Tensor = Any
MIXED = 0.3


class Mixtures:
    """Draws from `samples`, tensors by the name of the input; the same every time."""

    def __init__(self, torch: Any, samples: Sequence[Mapping[str, Tensor]]) -> None:
        self._torch, self._samples = torch, samples
        self._random = torch.Generator().manual_seed(0)

    def draw(self, count: int) -> dict[str, Tensor]:
        """So many of them, along the first axis."""
        first, second = (self._picked(count) for _ in range(2))
        if not all(a.is_floating_point() for a in first.values()):
            return first
        part = self._torch.rand(count, generator=self._random) * MIXED
        weight = {name: part.repeat_interleave(len(a) // count).reshape(-1, *[1] * (a.ndim - 1)) for name, a in first.items()}
        return {name: self._torch.lerp(a, second[name], weight[name].to(a.dtype)) for name, a in first.items()}

    def _picked(self, count: int) -> dict[str, Tensor]:
        picked = self._torch.randint(len(self._samples), (count,), generator=self._random).tolist()
        return {name: self._torch.cat([self._samples[i][name] for i in picked]) for name in self._samples[0]}
