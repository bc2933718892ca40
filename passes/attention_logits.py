"""What is softmaxed in attention: scale * q k^T + constant biases, with masks that are computed at run time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qcompiler.ir.graph import Value, apply
from qcompiler.ir.ops import MatMul, Reshape, Transpose, Where, const_data
from qcompiler.ir.pointwise import Add, Clip, Div, Mul

from .constants import fits, floats, uniform
from .run_time_masks import run_time_mask

Floats = NDArray[np.float64]

HIDDEN = -1e4
"""A bias of so much or less hides: exp(-10^4) is 0 in float32, and no exporter writes less for it."""

LOWEST = float(np.finfo(np.float32).min)


@dataclass(frozen=True)
class Logits:
    """softmax operand = where(all masks, scale * (q @ k) + bias, hidden), of `shape`; bias broadcasts to that, and so do masks."""

    q: Value
    k: Value
    scale: float
    shape: tuple[int, ...]
    bias: Floats | None = None
    masks: tuple[Value, ...] = ()

    def scaled(self, factor: float) -> Logits:
        """All times `factor`."""
        return replace(self, scale=self.scale * factor, bias=None if self.bias is None else self.bias * factor)

    def shifted(self, bias: Floats) -> Logits:
        """With a constant added."""
        return replace(self, bias=bias if self.bias is None else np.maximum(self.bias + bias, LOWEST))

    def masked(self, *masks: Value) -> Logits:
        """With what the masks do not hold for hidden."""
        return replace(self, masks=(*self.masks, *(m for m in masks if m not in self.masks)))

    def reshaped(self, shape: tuple[int, ...]) -> Logits | str:
        """With leading axes regrouped."""
        if self.bias is None and not self.masks:
            return replace(self, shape=shape)
        if shape[-2:] != self.shape[-2:] or self.masks:
            return f"masked logits are reshaped from {self.shape} to {shape}"
        assert self.bias is not None
        full = self.bias.reshape((1,) * (len(self.shape) - self.bias.ndim) + self.bias.shape)
        if all(d == 1 for d in full.shape[:-2]):
            return replace(self, shape=shape, bias=full.reshape(full.shape[-2:]))
        wide = np.broadcast_to(full, (*self.shape[:-2], *full.shape[-2:]))
        return replace(self, shape=shape, bias=wide.reshape(*shape[:-2], *full.shape[-2:]))


def peel(x: Value) -> Logits | str:
    """The logits that `x` computes, or why they are none."""
    match x:
        case Value(MatMul(), (q, k)) if len(q.shape) >= 2 and len(k.shape) >= 2:
            return Logits(q, k, 1.0, x.shape)
        case Value(Mul(), (y, c)) if (factor := uniform(c)) is not None and fits(c, y):
            return _then(y, lambda found: found.scaled(factor))
        case Value(Div(), (y, c)) if uniform(c) and fits(c, y):
            return _then(y, lambda found: found.scaled(1 / (uniform(c) or 1)))
        case Value(Clip(lo, hi), (y,)) if lo <= -1e30 and hi >= 1e30:
            return peel(y)
        case Value(Reshape(), (y,)) if y.shape[-2:] == x.shape[-2:]:
            return _then(y, lambda found: found.reshaped(x.shape))
        case Value(Add(), (y, c)) if (data := floats(c)) is not None and fits(c, y):
            return _then(y, lambda found: found.shifted(np.maximum(data, LOWEST)))
        case Value(Add(), (a, b)):
            return _peel_sum(x, a, b)
        case Value(Where(), (condition, a, b)):
            return _peel_where(condition, a, b)
    return f"'{x.name}' ({type(x.op).__name__}) stands between the products and the softmax"


def _then(y: Value, further: Callable[[Logits], Logits | str]) -> Logits | str:
    found = peel(y)
    return found if isinstance(found, str) else further(found)


def _peel_sum(x: Value, a: Value, b: Value) -> Logits | str:
    """Products plus a mask that is computed at run time, on either side."""
    for y, added in ((a, b), (b, a)):
        if y.shape == x.shape and (mask := run_time_mask(added, hides)) is not None:
            found = peel(y)
            return found if isinstance(found, str) else found.shifted(np.maximum(mask[1], LOWEST)).masked(mask[0])
    return f"'{x.name}' adds what is computed at run time and is no mask"


def hides(bias: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Where a bias hides."""
    return np.asarray(bias.astype(np.float64) <= HIDDEN)


def _peel_where(condition: Value, a: Value, b: Value) -> Logits | str:
    """Products where a condition holds, else (or the other way round) a number that hides."""
    for y, number, negated in ((a, b, False), (b, a, True)):
        value = uniform(number)
        if value is not None and value <= HIDDEN:
            found = peel(y)
            return found if isinstance(found, str) else _masked(found, condition, negated)
    return "a condition chooses between two variables"


def _masked(found: Logits, condition: Value, negated: bool) -> Logits | str:
    """The logits hidden where the condition does not hold, or where it does."""
    known = const_data(condition)
    if known is not None:
        return found.shifted(_hiding(known == negated))
    mask = run_time_mask(condition, lambda data: np.asarray(data == negated))
    if mask is None:
        return f"its mask '{condition.name}' is not computed from one integer or boolean input"
    return found.shifted(_hiding(mask[1] == negated)).masked(mask[0])


def _hiding(hidden: NDArray[np.bool_]) -> Floats:
    return np.where(hidden, LOWEST, 0.0)


def unscaled(x: Value) -> tuple[Value, float]:
    """An operand of the product without a factor that all its elements have, and that factor."""
    match x:
        case Value(Mul(), (y, c)) if (factor := uniform(c)) is not None and fits(c, y):
            inner, rest = unscaled(y)
            return inner, factor * rest
        case Value(Div(), (y, c)) if (divisor := uniform(c)) and fits(c, y):
            inner, rest = unscaled(y)
            return inner, rest / divisor
        case Value(Transpose() | Reshape() as op, (y,)):
            inner, factor = unscaled(y)
            return (x, 1.0) if inner is y else (apply(op, inner, name=x.name), factor)
    return x, 1.0
