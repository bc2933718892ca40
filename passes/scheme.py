"""What a tool asks of scales and zero points. Everything that chooses them is told beforehand, so that nothing is patched afterwards.

power of two     S = 2^k: requantization is a shift alone
symmetric        Z = 0: real zero is the integer zero, and -2^(bits-1) is not used
per tensor       one scale for all output channels of a layer's weights
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qcompiler.ir.graph import Value
from qcompiler.ir.types import Quantization

SLACK = 1e-6
"""Relative; a scale that much above a power of two is that power, rounded to float32."""


@dataclass(frozen=True)
class Scheme:
    """The defaults ask for nothing, and are those of compiled programs."""

    symmetric: bool = False
    """Of activations; weights always are."""
    power_of_two: bool = False
    per_channel: bool = True
    bits: int = 8
    """Of activations: 8, or 16 for tools whose accumulators hold the products of those."""
    streams: bool = True
    """Whether outputs and residual streams may have 16 bits where others have 8."""
    same: frozenset[str] = frozenset()
    """ONNX names of operators whose result has the scale and zero point of what they read; movement does in any case."""
    fixed: tuple[tuple[str, float, int], ...] = ()
    """(ONNX operator, scale, zero point) of 8-bit results that must have these."""

    def step(self, scale: float) -> float:
        """`scale` itself, or the least power of two that is no finer."""
        return float(next_power(np.float64(scale))) if self.power_of_two else scale

    def result(self, v: Value) -> Quantization | None:
        """What is fixed for the result of `v`, whatever its data."""
        return next((Quantization.per_tensor(s, z) for name, s, z in self.fixed if name == type(v.op).__name__), None)


PLAIN = Scheme()


def next_power(scale: NDArray[np.float64] | np.float64) -> NDArray[np.float64]:
    """The least powers of two that reach `scale`; zero stays zero."""
    mantissa, exponent = np.frexp(np.asarray(scale, np.float64) / (1 + SLACK))
    return np.where(mantissa > 0, np.ldexp(1.0, np.where(mantissa == 0.5, exponent - 1, exponent)), 0.0)


def is_power_of_two(scale: NDArray[np.floating] | float) -> NDArray[np.bool_]:
    """Whether each scale is one."""
    return np.asarray(np.frexp(np.asarray(scale, np.float64))[0] == 0.5)
