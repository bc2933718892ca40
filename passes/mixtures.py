"""Inputs in the manner of calibration samples, as many as are wanted: parts of pictures, mirrored, mixed.

    x = (1 - a) z(x_i) + a z(x_j)        i, j any samples, a up to `MIXED`, z a part of the picture at its full size, mirrored or not

after Zhang et al. 2018, "mixup", and the random crops of Szegedy et al. 2015, "Going Deeper with Convolutions", section 6. Nothing is assumed of
what they show: the float network says what the right answer is. Pictures are what networks of one input of rank four read. Integers are drawn, but
not mixed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Tensor = Any
MIXED = 0.3
SMALLEST = 0.5
"""Part of a picture's height and width that is left, at least."""


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
        found = {name: self._torch.cat([self._samples[i][name] for i in picked]) for name in self._samples[0]}
        if len(found) == 1 and all(a.ndim == 4 and a.is_floating_point() for a in found.values()):
            return {name: self._part(a) for name, a in found.items()}
        return found

    def _part(self, x: Tensor) -> Tensor:
        """Of pictures [n, C, H, W] or [n, H, W, C], whose channels are the shorter axis: one part of each, mirrored half of the time."""
        last = x.shape[3] < x.shape[1]
        made = self._zoomed(x.permute(0, 3, 1, 2) if last else x)
        return made.permute(0, 2, 3, 1) if last else made

    def _zoomed(self, x: Tensor) -> Tensor:
        size = SMALLEST + (1 - SMALLEST) * self._uniform(len(x))
        mirrored = size * self._torch.sign(self._uniform(len(x)) - 0.5)
        down, right = ((1 - size) * (2 * self._uniform(len(x)) - 1) for _ in range(2))
        none = self._torch.zeros(len(x))
        rows = (self._torch.stack(row, -1) for row in ((mirrored, none, right), (none, size, down)))
        functional = self._torch.nn.functional
        grid = functional.affine_grid(self._torch.stack(list(rows), 1).to(x.dtype), x.shape, align_corners=False)
        return functional.grid_sample(x, grid, padding_mode="border", align_corners=False)

    def _uniform(self, count: int) -> Tensor:
        return self._torch.rand(count, generator=self._random)
