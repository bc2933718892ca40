"""Resize tap tables back to ONNX Resize modes where one reproduces the table exactly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.ir.ops import Resize

Taps = tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]


@dataclass(frozen=True)
class ResizeMode:
    """Attributes of an ONNX Resize."""

    mode: str
    coordinates: str
    rounding: str = "floor"

    def attributes(self) -> dict[str, Any]:
        """As keyword arguments of `make_node`."""
        nearest = {"nearest_mode": self.rounding} if self.mode == "nearest" else {}
        return {"mode": self.mode, "coordinate_transformation_mode": self.coordinates, **nearest}


COORDINATES = ("asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel")


def _candidates(nearest: bool) -> Iterator[ResizeMode]:
    if not nearest:
        yield from (ResizeMode("linear", c) for c in COORDINATES)
    else:
        yield from (ResizeMode("nearest", c, r) for c in COORDINATES for r in ("floor", "round_prefer_floor"))


def source_coordinates(coordinates: str, size: int, out: int) -> NDArray[np.float64]:
    """Real source position of each of `out` results over an axis of `size` (ONNX operator Resize)."""
    o = np.arange(out, dtype=np.float64)
    match coordinates:
        case "asymmetric":
            return o * size / out
        case "align_corners":
            return o * (size - 1) / (out - 1) if out > 1 else 0 * o
        case "pytorch_half_pixel" if out == 1:
            return 0 * o
        case _:
            return (o + 0.5) * size / out - 0.5


def standard_taps(mode: ResizeMode, size: int, out: int) -> Taps:
    """The taps that `mode` has when `size` becomes `out`."""
    x = source_coordinates(mode.coordinates, size, out)
    if mode.mode == "nearest":
        picked = np.floor(x) if mode.rounding == "floor" else np.ceil(x - 0.5)
        i = tuple(int(k) for k in np.clip(picked, 0, size - 1))
        return i, i, (0.0,) * out
    x = np.clip(x, 0, size - 1)
    low = np.floor(x).astype(int)
    return tuple(low.tolist()), tuple(np.minimum(low + 1, size - 1).tolist()), tuple((x - low).tolist())


def matches(op: Resize, shape: tuple[int, ...], mode: ResizeMode) -> bool:
    """Whether `mode` gives the taps of every resized axis."""
    return all(t is None or _equal(t, standard_taps(mode, n, len(t[0]))) for n, t in zip(shape, op.taps))


def _equal(a: Taps, b: Taps) -> bool:
    """Equal sources; a second tap matters only where its weight is not zero."""
    t, u = np.array(a[2]), np.array(b[2])
    used = (t > 1e-6) | (u > 1e-6)
    return bool(np.allclose(t, u, atol=1e-6) and np.array_equal(a[0], b[0]) and np.array_equal(np.array(a[1])[used], np.array(b[1])[used]))


def standard_mode(op: Resize, shape: tuple[int, ...]) -> ResizeMode | None:
    """The ONNX mode that equals `op` on an operand of `shape`, or None.

    onnxruntime interpolates linearly over the two spatial axes only; others are left to Gather.
    """
    if not op.nearest and (len(shape) != 4 or op.taps[0] is not None or op.taps[3] is not None):
        return None
    return next((m for m in _candidates(op.nearest) if matches(op, shape, m)), None)
