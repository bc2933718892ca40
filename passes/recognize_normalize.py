"""y = gamma * (x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon) + beta: layer normalization, however it is spelled.

Ba et al. 2016, "Layer normalization"; without the mean it is RMSNorm (Zhang and Sennrich 2019). Exporters write it with Pow or Mul,
Sqrt and Div, Reciprocal or Pow(-1/2), with gamma and beta before or behind, as x * a + (beta - mean * a) ... So a region of
pointwise operators and means over the last axis is run on a few rows of random numbers, and is a normalization if its results are
those of one for some gamma and beta.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from qcompiler.ir.graph import Declined, Graph, Sweep, Value, apply, rewrite
from qcompiler.ir.ops import Cast, Const, Reduce, Reduction, constant
from qcompiler.ir.pointwise import Binary, Clip, Div, Unary
from qcompiler.ir.sequence import Normalize
from qcompiler.ir.types import DType
from qcompiler.numerics.normalize import MAX_CHANNELS

from .regions import Floats, Make, Region, all_roots, between, outermost, replace_regions

LONGEST = 32
"""Values of the longest spelling."""

SCALES = (1.0, 3.0, 30.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-6, 10.0)
"""Of the rows that a region is tried on: the small ones tell epsilon."""

TOLERANCE = 1e-5


def recognize_normalize(graph: Graph, declined: Declined | None = None) -> Graph:
    """Replace every region that normalizes the last axis by a `Normalize`."""
    if any(_is_reduction(v) for v in graph.order):
        roots = all_roots(graph, _is_inside)
        graph = replace_regions(graph, outermost(graph, lambda v: _match(v, roots[v])))
    return rewrite(graph, [drop_scale], declined)


def drop_scale(v: Value, sweep: Sweep) -> Value | None:
    """normalize(x / s) = normalize(x) for a positive s per row, where epsilon is 0: what a mean over words is divided by does not matter."""
    match v:
        case Value(op=Normalize(epsilon=0.0), inputs=(Value(op=Div(), inputs=(x, Value(op=Clip(lo=lo)) as s)), *parameters)):
            if lo > 0 and x.shape == v.shape and s.shape[-1:] == (1,):
                return apply(v.op, x, *parameters, name=v.name)
    return None


def _is_reduction(v: Value) -> bool:
    """A mean or sum over the last axis, which is kept, and not longer than integers can normalize."""
    match v:
        case Value(Reduce(Reduction.mean | Reduction.sum, axes, True), (x,)):
            return axes == (len(x.shape) - 1,) and 1 < x.shape[-1] <= MAX_CHANNELS
    return False


def _is_inside(v: Value) -> bool:
    """Works on each row alone, with constants that are the same for each row."""
    if _is_reduction(v):
        return True
    if not isinstance(v.op, (Unary, Binary, Cast)) or not v.type.dtype.is_float:
        return False
    tensors = [i for i in v.inputs if not isinstance(i.op, Const)]
    return all(len(i.shape) == len(v.shape) and i.shape[:-1] == v.shape[:-1] and i.type.dtype.is_float for i in tensors) and all(
        set(c.shape[:-1]) <= {1} and len(c.shape) <= len(v.shape) for c in v.inputs if isinstance(c.op, Const)
    )


def _match(v: Value, roots: tuple[Value, ...]) -> tuple[Region, Make] | None:
    """The greatest region that ends in `v` and normalizes."""
    if not isinstance(v.op, Binary) or v.type.dtype is not DType.f32:
        return None
    for root in reversed(roots):
        if root.shape == v.shape and root.type.dtype is DType.f32:
            region = between(root, v)
            if len(region.values) <= LONGEST and any(map(_is_reduction, region.values)) and (make := _fitted(region)) is not None:
                return region, make
    return None


def _fitted(region: Region) -> Make | None:
    """How to make the normalization that the region computes, if it does."""
    channels = region.root.shape[-1]
    x = _rows(channels)
    shape = (*(1,) * (len(region.root.shape) - 2), *x.shape)
    y = region.run(x.reshape(shape)).reshape(x.shape)
    if not np.isfinite(y).all():
        return None
    for centered, epsilon in ((c, e) for c in (True, False) for e in _epsilons(region, channels)):
        affine = _affine(normalized(x, epsilon, centered), y)
        if affine is not None:
            return _maker(Normalize(epsilon, centered), region.values[-1], *affine)
    return None


def _rows(channels: int) -> Floats:
    """Rows of random numbers of several magnitudes, off zero."""
    scales = np.array(SCALES)[:, None]
    return (np.random.default_rng(0).standard_normal((len(SCALES), channels)) + 0.5) * scales


def _epsilons(region: Region, channels: int) -> Iterator[float]:
    """Numbers that may be epsilon: those that occur, also as what is added to a sum rather than to a mean; none at all."""
    numbers = {float(c.op.data.flat[0]) for c in region.constants if isinstance(c.op, Const) and c.type.size == 1}
    small = sorted(n for n in numbers if 0 < n < 0.1)
    yield from (*small, *(n / channels for n in small), 0.0)


def normalized(x: Floats, epsilon: float, centered: bool) -> Floats:
    """The rows of `x` without gamma and beta."""
    c = x - x.mean(-1, keepdims=True) if centered else x
    result: Floats = c / np.sqrt((c * c).mean(-1, keepdims=True) + epsilon)
    return result


def _affine(n: Floats, y: Floats) -> tuple[Floats, Floats] | None:
    """gamma and beta with y = gamma * n + beta in every row, by least squares, if there are such."""
    middle = n - n.mean(0)
    gamma = (middle * y).sum(0) / np.maximum((middle * middle).sum(0), 1e-30)
    beta = y.mean(0) - gamma * n.mean(0)
    error = np.abs(gamma * n + beta - y).max()
    if not error <= TOLERANCE * max(float(np.abs(y).max()), 1e-30):
        return None
    beta[np.abs(beta) < TOLERANCE * 1e-3 * np.abs(gamma)] = 0.0
    return gamma, beta


def _maker(op: Normalize, v: Value, gamma: Floats, beta: Floats) -> Make:
    g, b = (constant(a.astype(np.float32), f"{v.name}.{n}") for a, n in ((gamma, "gamma"), (beta, "beta")))
    return lambda x: apply(op, x, g, b, name=v.name)
