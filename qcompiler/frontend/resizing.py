"""Resize and Upsample: every coordinate mode of nearest and linear becomes a table of two taps for each output position."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import floor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.frontend.node import Importers, Node, Unsupported
from qcompiler.ir.graph import Value
from qcompiler.ir.ops import Resize, Transpose

IMPORTERS = Importers()

LONGEST = 1 << 20
"""An axis that is longer is no image, but an attempt to fill the memory with its table."""

Positions = NDArray[np.floating[Any]]
Taps = tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]


@IMPORTERS.register("Upsample")
def upsample(node: Node, x: Value, scales: Value | None = None) -> Value:
    """The operator before Resize."""
    return _upsampled(node, x, node.attributes["scales"] if scales is None else node.static(scales, "scales").reshape(-1).tolist())


def _upsampled(node: Node, x: Value, factors: Sequence[float]) -> Value:
    """Asymmetric coordinates, nearest rounds down: Upsample, and Resize before opset 11."""
    mode = node.choice("mode", "nearest", "linear")
    sizes = [floor(d * f) for d, f in zip(x.shape, factors, strict=True)]
    return _emit(node, x, [_taps(mode, "asymmetric", "floor", *n) for n in zip(x.shape, sizes, factors)])


@IMPORTERS.register("Resize")
def resize(node: Node, x: Value, roi: Value | None = None, scales: Value | None = None, sizes: Value | None = None) -> Value:
    """Sizes or scales for all axes or for `axes`; the region of interest and cubic interpolation are not supported."""
    if node.opset < 11 and roi is not None:
        return _upsampled(node, x, node.static(roi, "scales").reshape(-1).tolist())
    mode = node.choice("mode", "nearest", "linear")
    coordinates = node.choice("coordinate_transformation_mode", *_COORDINATES)
    rounding = node.choice("nearest_mode", *_ROUNDING)
    lengths, factors = _lengths(node, x.shape, scales, sizes)
    if node.attributes.get("antialias") and mode == "linear" and any(n < d for n, d in zip(lengths, x.shape)):
        raise Unsupported("shrinks with antialias; supported is antialias=0")
    return _emit(node, x, [_taps(mode, coordinates, rounding, *n) for n in zip(x.shape, lengths, factors)])


def _emit(node: Node, x: Value, taps: Sequence[Taps | None]) -> Value:
    """Around H and W alone channels-last, as the spatial operator that it is; anything else as it stands."""
    if all(t is None for t in taps):
        return x
    if len(taps) != 4 or taps[0] is not None or taps[1] is not None:
        return node.emit(Resize(tuple(taps)), x)
    last = node.emit(Transpose((0, 2, 3, 1)), x)
    return node.channels_first(node.emit(Resize((None, taps[2], taps[3], None)), last))


# --- sizes ---


def _lengths(node: Node, shape: tuple[int, ...], scales: Value | None, sizes: Value | None) -> tuple[list[int], list[float]]:
    """Output length and scale of each axis."""
    chosen = node.integers("axes")
    axes = range(len(shape)) if chosen is None else [node.axis(len(shape), a, "axes") for a in chosen]
    lengths, factors = list(shape), [1.0] * len(shape)
    if scales is not None and scales.type.size:
        given = node.static(scales, "scales").reshape(-1).astype(np.float64).tolist()
        for axis, factor in zip(axes, given, strict=True):
            lengths[axis], factors[axis] = floor(shape[axis] * factor), factor
    elif sizes is not None:
        wanted = _kept_ratio(node, [shape[a] for a in axes], node.static_integers(sizes, "sizes"))
        for axis, (length, factor) in zip(axes, wanted, strict=True):
            lengths[axis], factors[axis] = length, factor
    else:
        raise ValueError("neither scales nor sizes are given")
    return lengths, factors


def _kept_ratio(node: Node, shape: Sequence[int], sizes: Sequence[int]) -> list[tuple[int, float]]:
    """Lengths and scales for `sizes`, all scaled alike where keep_aspect_ratio_policy says so."""
    factors = [n / d for n, d in zip(sizes, shape, strict=True)]
    policy = bytes(node.attributes.get("keep_aspect_ratio_policy", b"stretch")).decode("utf-8", "replace")
    if policy == "stretch":
        return list(zip(sizes, factors))
    factor = min(factors) if policy == "not_larger" else max(factors)
    return [(floor(factor * d + 0.5), factor) for d in shape]


# --- coordinates ---


def _pytorch_half_pixel(o: Positions, size: int, length: int, scale: float) -> Positions:
    return (o + 0.5) / scale - 0.5 if length > 1 else 0 * o


def _align_corners(o: Positions, size: int, length: int, scale: float) -> Positions:
    return o * (size - 1) / (length - 1) if length > 1 else 0 * o


def _half_pixel_symmetric(o: Positions, size: int, length: int, scale: float) -> Positions:
    adjustment = length / (scale * size)
    return size / 2 * (1 - adjustment) + (o + 0.5) / scale - 0.5


_COORDINATES: Mapping[str, Callable[[Positions, int, int, float], Positions]] = {
    "half_pixel": lambda o, size, length, scale: (o + 0.5) / scale - 0.5,
    "half_pixel_symmetric": _half_pixel_symmetric,
    "pytorch_half_pixel": _pytorch_half_pixel,
    "align_corners": _align_corners,
    "asymmetric": lambda o, size, length, scale: o / scale,
    "tf_half_pixel_for_nn": lambda o, size, length, scale: (o + 0.5) / scale,
}
"""Position in the operand of output position o; in float32 as onnxruntime's, for nearest decides by a last bit."""

_ROUNDING: Mapping[str, Callable[[Positions], Positions]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _taps(mode: str, coordinates: str, rounding: str, size: int, length: int, scale: float) -> Taps | None:
    """The table of one axis; None where it changes nothing."""
    if not 1 <= length < LONGEST:
        raise ValueError(f"cannot resize an axis to {length}")
    at = _COORDINATES[coordinates](np.arange(length, dtype=np.float32), size, length, scale)
    if mode == "nearest":
        first: Positions = np.clip(_ROUNDING[rounding](at), 0, size - 1)
        second, weight = first, 0 * at
    else:
        at = np.clip(at, 0, size - 1)
        first = np.minimum(np.floor(at), max(size - 2, 0))
        second, weight = np.minimum(first + 1, size - 1), at - first
    if length == size and np.array_equal(first + weight, np.arange(size)):
        return None
    return tuple(map(int, first)), tuple(map(int, second)), tuple(map(float, weight))
