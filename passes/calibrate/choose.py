"""From the statistics of a value to its scale and zero point.

    min-max       the range seen
    percentile    without the outermost part of the elements (Wu et al. 2020, "Integer quantization for deep learning inference", section 4)
    mse           the range that minimises E |x - Q(x)|^2.4 under the histogram (Banner et al. 2019, ACIQ, solved numerically)
    entropy       the range that minimises the Kullback-Leibler divergence of the quantized histogram (Migacz 2017, TensorRT)

Every range is widened to hold zero, which is represented exactly; a range that never goes below zero gets the least zero
point. Scales are float32 numbers, so that a quantized ONNX model holds the very same ones. Powers of two are rounded up from the scale of a
range; methods that search for a range thereby compare them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import UsageError
from qcompiler.ir.types import Quantization
from qcompiler.passes.scheme import PLAIN, Scheme

from .entropy import least_divergence
from .histogram import Histogram
from .statistics import Statistics

Floats = NDArray[np.float64]

POINTS_PER_BIN = 4
NARROWEST_RANGE = 1e-30
"""What spans less is taken for all zero and gets the range [0, 1]."""


@dataclass(frozen=True)
class MinMax:
    """The range seen."""


@dataclass(frozen=True)
class Percentile:
    """The range left when (100 - `percent`) % of the elements are cut off, half of them at each end that is not zero."""

    percent: float = 99.99


@dataclass(frozen=True)
class Mse:
    """The range of least E |x - Q(x)|^power; `candidates` are tried per end.

    2.4 (as Li et al. 2021, BRECQ) rather than 2: clipping costs a network more than its share of the squared error. Measured on five
    convolutional networks, it had the least or nearly least divergence from the float outputs; see docs/calibration.md.
    """

    power: float = 2.4
    candidates: int = 48


@dataclass(frozen=True)
class Entropy:
    """The range of least divergence."""


Method = MinMax | Percentile | Mse | Entropy

DEFAULT: Method = Mse()


def method_named(text: str) -> Method:
    """The method a user names: minmax, percentile, percentile:99.9, mse or entropy. UsageError for anything else."""
    name, _, argument = text.partition(":")
    made: dict[str, Callable[[], Method]] = {"minmax": MinMax, "mse": Mse, "entropy": Entropy, "percentile": Percentile}
    try:
        percent = float(argument) if argument else None
        if name not in made or (percent is not None and (name != "percentile" or not 50 < percent <= 100)):
            raise ValueError
    except ValueError:
        expected = "minmax, mse, entropy, percentile or percentile:P with 50 < P <= 100"
        raise UsageError(f"calibration method: expected {expected}, found '{text}'. Leave it out for the default.") from None
    return made[name]() if percent is None else Percentile(percent)


def choose(
    statistics: Statistics, method: Method = DEFAULT, bits: int = 8, scheme: Scheme = PLAIN, seen: Callable[[Floats], Floats] | None = None
) -> Quantization:
    """The per-tensor quantization of a value, within `scheme`.

    `seen` is the function through which alone the value is read: `Mse` then minimises E |seen(x) - seen(Q(x))|^p.
    """
    if seen is not None and isinstance(method, Mse) and statistics.max > statistics.min:
        seen_error = partial(image_error, statistics.histogram, seen, bits=bits, power=method.power, scheme=scheme)
        lo, hi = min(statistics.min, 0.0), max(statistics.max, 0.0)
        return affine(*least_error_range(seen_error, lo, hi, method.candidates), bits, scheme)
    if statistics.max - min(statistics.min, 0.0) < NARROWEST_RANGE and statistics.min > -NARROWEST_RANGE:
        return affine(0.0, 1.0, bits, scheme)
    return affine(*_range(statistics, method, bits, scheme), bits, scheme)


def affine(lo: float, hi: float, bits: int = 8, scheme: Scheme = PLAIN) -> Quantization:
    """The quantization whose range is [lo, hi] widened to hold zero, and to what `scheme` allows; the zero point is rounded, the scale float32."""
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    qmin, qmax = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    if scheme.symmetric:
        return Quantization.per_tensor(scheme.step(float(np.float32(max(-lo, hi) / qmax))), 0, bits)
    scale = scheme.step(float(np.float32((hi - lo) / (qmax - qmin))))
    return Quantization.per_tensor(scale, int(np.clip(np.rint(qmin - lo / scale), qmin, qmax)), bits)


def _range(statistics: Statistics, method: Method, bits: int, scheme: Scheme) -> tuple[float, float]:
    """The range that `method` finds, within the extremes seen."""
    lo, hi = min(statistics.min, 0.0), max(statistics.max, 0.0)
    match method:
        case Percentile(percent=percent):
            low, high = percentile_range(statistics.histogram, percent)
            return max(lo, low), min(hi, high)
        case Mse(power=power, candidates=candidates):
            return least_error_range(lambda a, b: rounding_error(statistics.histogram, a, b, bits, scheme, power), lo, hi, candidates)
        case Entropy():
            limit = least_divergence(statistics.histogram, 1 << (bits - 1 if scheme.symmetric else bits))
            return max(lo, -limit), min(hi, limit)
    return lo, hi


def percentile_range(h: Histogram, percent: float) -> tuple[float, float]:
    """The quantiles of `h`, linear within a bin; an end without elements beyond zero is zero and gets no share of the cut."""
    below = np.concatenate([[0.0], np.cumsum(h.counts) / h.counts.sum()])
    cut = (1 - percent / 100) / ((h.first < 0) + (h.first + len(h.counts) > 1) or 1)
    lo, hi = np.interp([cut, 1 - cut], below, h.edges)
    return min(float(lo), 0.0) if h.first < 0 else 0.0, max(float(hi), 0.0)


def rounding_error(h: Histogram, lo: Floats | float, hi: Floats | float, bits: int, scheme: Scheme = PLAIN, power: float = 2.0) -> Floats:
    """Sum of |x - Q(x)|^p for each candidate range, taking the elements of a bin as spread evenly over it.

    The integral of |x - Q(x)|^p from 0 to x >= 0 is closed: (2 n (s/2)^(p+1) + d |d|^p) / (p+1), d = x - n s, with n = round(x / s)
    held within the grid; likewise below zero.
    """
    grids = [affine(float(a), float(b), bits, scheme) for a, b in np.broadcast(lo, hi)]
    scale = np.array([g.scale[0] for g in grids])[:, None]
    zero = np.array([g.zero_point[0] for g in grids])[:, None]
    x = h.edges[None, :]
    n = np.clip(np.rint(x / scale), grids[0].qmin + int(scheme.symmetric) - zero, grids[0].qmax - zero)
    d = x - n * scale
    integral = (2 * n * (scale / 2) ** (power + 1) + d * np.abs(d) ** power) / (power + 1)
    return np.asarray(np.diff(integral, axis=1) @ h.counts / h.width)


def image_error(
    h: Histogram, seen: Callable[[Floats], Floats], lo: Floats | float, hi: Floats | float, bits: int, power: float, scheme: Scheme = PLAIN
) -> Floats:
    """Sum of |f(x) - f(Q(x))|^p for each candidate range, f = `seen`, at `POINTS_PER_BIN` points of every bin.

    A flat part of f costs nothing: most levels go where f is steep, as for SiLU above zero and sigmoid around it.
    """
    filled = h.counts > 0
    x = (h.edges[:-1][filled, None] + (np.arange(POINTS_PER_BIN) + 0.5) / POINTS_PER_BIN * h.width).ravel()
    counts = np.repeat(h.counts[filled], POINTS_PER_BIN) / POINTS_PER_BIN
    exact = np.nan_to_num(seen(x))
    levels = np.arange(-(1 << (bits - 1)), 1 << (bits - 1))
    errors = []
    for a, b in np.broadcast(lo, hi):
        grid = affine(float(a), float(b), bits, scheme)
        table = np.nan_to_num(seen(grid.dequantize(levels)))
        errors.append((np.abs(exact - table[grid.quantize(x).astype(np.int64) - levels[0]]) ** power) @ counts)
    return np.array(errors)


def least_error_range(error: Callable[[Floats | float, Floats | float], Floats], lo: float, hi: float, candidates: int) -> tuple[float, float]:
    """Coordinate descent over the two ends, each from a grid of fractions of the range seen, then from a finer one around the best."""
    low, high = lo, hi
    coarse, fine = np.linspace(1 / candidates, 1, candidates), 1 + np.linspace(-1, 1, 9) / candidates
    for is_fine in (False, False, True, True):
        highs = np.minimum(np.unique(fine * high if is_fine else coarse * hi), hi)
        high = float(highs[np.argmin(error(low, highs))])
        lows = np.maximum(np.unique(fine * low if is_fine else coarse * lo), lo)
        low = float(lows[np.argmin(error(lows, high))])
    return low, high
