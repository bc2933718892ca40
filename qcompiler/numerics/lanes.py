"""The protocol in which integer arithmetic is written once, and its checked numpy reading.

A `Lanes` is a vector of signed integers of one declared width. A function over it, such as `requantize`, is read three
times: by `CheckedLanes` here (numpy, raising when a value leaves its width), by the LLVM emitter (whose `Val`
implements the same methods and turns each into an instruction), and by exact fractions in the property tests.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Self = TypeVar("Self", bound="Lanes")


class Lanes(Protocol):
    """Signed integers of a declared width. Operands of two-operand methods have equal widths."""

    @property
    def bits(self) -> int:
        """Width of every lane."""
        ...

    def __add__(self: Self, other: Self) -> Self:
        """Sum; the caller has proven that it stays within the width."""
        ...

    def __mul__(self: Self, other: Self) -> Self:
        """Product; the caller has proven that it stays within the width."""
        ...

    def add_sat(self: Self, other: Self) -> Self:
        """Sum, saturated to the width."""
        ...

    def shl(self: Self, amount: Self) -> Self:
        """Left shift by 0 <= amount < bits; proven to stay within the width."""
        ...

    def shr(self: Self, amount: Self) -> Self:
        """Arithmetic right shift by 0 <= amount < bits."""
        ...

    def sat(self: Self, bits: int) -> Self:
        """Saturated to a narrower width."""
        ...

    def sext(self: Self, bits: int) -> Self:
        """The same values in a wider width."""
        ...

    def clamp(self: Self, lo: int, hi: int) -> Self:
        """min(max(x, lo), hi), width kept."""
        ...

    def mul_q15(self: Self, other: Self) -> Self:
        """16-bit lanes: (a * b + 2^14) >> 15, the rounding multiply of every SIMD set; a, b not both -2^15."""
        ...

    def mul_wide(self: Self, other: Self) -> Self:
        """The exact product in twice the width."""
        ...

    def splat(self: Self, value: int) -> Self:
        """A constant in all lanes, of this width."""
        ...


class WidthError(ArithmeticError):
    """A value left the width that the arithmetic declares for it."""


class CheckedLanes:
    """`Lanes` over int64 numpy arrays that raise `WidthError` whenever a value leaves its declared width."""

    def __init__(self, values: NDArray[np.integer] | int, bits: int) -> None:
        self.values: NDArray[np.int64] = np.asarray(values, np.int64)
        self.bits = bits
        lo, hi = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
        if self.values.size and (self.values.min() < lo or self.values.max() > hi):
            raise WidthError(f"values in [{self.values.min()}, {self.values.max()}] do not fit in {bits} bits")

    def _like(self, values: NDArray[np.int64]) -> CheckedLanes:
        return CheckedLanes(values, self.bits)

    def _check(self, other: CheckedLanes) -> NDArray[np.int64]:
        if other.bits != self.bits:
            raise WidthError(f"operands of {self.bits} and {other.bits} bits are mixed")
        return other.values

    def __add__(self, other: CheckedLanes) -> CheckedLanes:
        return self._like(self.values + self._check(other))

    def __mul__(self, other: CheckedLanes) -> CheckedLanes:
        return self._like(self.values * self._check(other))

    def add_sat(self, other: CheckedLanes) -> CheckedLanes:
        return self._like(_saturate(self.values + self._check(other), self.bits))

    def shl(self, amount: CheckedLanes) -> CheckedLanes:
        return self._like(self.values << self._amount(amount))

    def shr(self, amount: CheckedLanes) -> CheckedLanes:
        return self._like(self.values >> self._amount(amount))

    def _amount(self, amount: CheckedLanes) -> NDArray[np.int64]:
        values = self._check(amount)
        if values.size and (values.min() < 0 or values.max() >= self.bits):
            raise WidthError(f"shift by [{values.min()}, {values.max()}] of {self.bits}-bit lanes")
        return values

    def sat(self, bits: int) -> CheckedLanes:
        return CheckedLanes(_saturate(self.values, bits), bits)

    def sext(self, bits: int) -> CheckedLanes:
        return CheckedLanes(self.values, bits)

    def clamp(self, lo: int, hi: int) -> CheckedLanes:
        return self._like(np.clip(self.values, lo, hi))

    def mul_q15(self, other: CheckedLanes) -> CheckedLanes:
        if self.bits != 16:
            raise WidthError(f"mul_q15 needs 16-bit lanes, found {self.bits}")
        return self._like((self.values * self._check(other) + (1 << 14)) >> 15)

    def mul_wide(self, other: CheckedLanes) -> CheckedLanes:
        return CheckedLanes(self.values * self._check(other), 2 * self.bits)

    def splat(self, value: int) -> CheckedLanes:
        return self._like(np.asarray(value, np.int64))


def _saturate(values: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    return np.clip(values, -(1 << (bits - 1)), (1 << (bits - 1)) - 1)
