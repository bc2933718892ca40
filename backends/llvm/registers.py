"""What kernels compute with: `Val`, bundles of vector registers, and `Ptr` and `Index`, addresses and 64-bit integers.

Operations write code at the place where their `Kernel` (see `dsl`) is; the order of lanes is explained there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

from llvmlite import ir

from . import instrs

if TYPE_CHECKING:
    from .dsl import Kernel

I8, I32, I64, PTR = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.PointerType()
Carried = TypeVar("Carried", bound="Val | Ptr | Index")


class MixedWidths(TypeError):
    """A kernel combined lanes of different widths: a mistake in the kernel."""


@dataclass(frozen=True, eq=False)
class Index:
    """A 64-bit integer computed at run time."""

    k: Kernel
    ir: Any

    def __add__(self, other: Index | int) -> Index:
        if other == 0:
            return self
        return Index(self.k, self.k.b.add(self.ir, self.k.i64(other)))

    def __sub__(self, other: Index | int) -> Index:
        return Index(self.k, self.k.b.sub(self.ir, self.k.i64(other)))

    def __mul__(self, factor: int) -> Index | int:
        if factor == 0:
            return 0
        return self if factor == 1 else Index(self.k, self.k.b.mul(self.ir, self.k.i64(factor)))

    def minimum(self, bound: Index | int) -> Index:
        """min(self, bound)."""
        limit = self.k.i64(bound)
        return Index(self.k, self.k.b.select(self.k.b.icmp_signed("<", self.ir, limit), self.ir, limit))


@dataclass(frozen=True, eq=False)
class Ptr:
    """An address: `base` plus a constant number of bytes."""

    k: Kernel
    base: Any
    offset: int = 0

    def __add__(self, by: Index | int) -> Ptr:
        if isinstance(by, int):
            return replace(self, offset=self.offset + by)
        return replace(self, base=self.k.b.gep(self.base, [by.ir], source_etype=I8))

    @property
    def ir(self) -> Any:
        """LLVM's pointer."""
        return self.k.b.gep(self.base, [self.k.i64(self.offset)], source_etype=I8) if self.offset else self.base


@dataclass(frozen=True, eq=False)
class Val:
    """A bundle of registers of `bits`-wide signed lanes; operands of one register meet every register of the other."""

    k: Kernel
    regs: tuple[Any, ...]
    bits: int

    def __len__(self) -> int:
        return len(self.regs)

    def __getitem__(self, part: slice) -> Val:
        return self._like(self.regs[part])

    def _like(self, regs: Sequence[Any]) -> Val:
        return Val(self.k, tuple(regs), self.bits)

    def map(self, emit: Callable[..., Any], *others: Val) -> Val:
        """emit(register, ...) for each register; others are of the same width, and of as many registers or one."""
        count = max(len(v) for v in (self, *others))
        for v in others:
            if v.bits != self.bits:
                raise MixedWidths(f"operands of {self.bits} and {v.bits} bits are mixed")
        if any(len(v) not in (1, count) for v in (self, *others)):
            raise MixedWidths(f"bundles of {[len(v) for v in (self, *others)]} registers are mixed")
        columns = (v.regs * (count // len(v)) for v in (self, *others))
        return self._like([emit(*regs) for regs in zip(*columns)])

    def __add__(self, other: Val) -> Val:
        return self.map(self.k.b.add, other)

    def __sub__(self, other: Val) -> Val:
        return self.map(self.k.b.sub, other)

    def __mul__(self, other: Val) -> Val:
        return self.map(self.k.b.mul, other)

    def __xor__(self, other: Val) -> Val:
        return self.map(self.k.b.xor, other)

    def add_sat(self, other: Val) -> Val:
        """Sum saturated to the width."""
        return self.map(lambda x, y: self.k.intrinsic("sadd.sat", x, y), other)

    def shl(self, amount: Val) -> Val:
        """Left shift, per lane. By a constant: SSE has none by registers, and LLVM would go through floating point there."""
        return self.map(self.k.b.shl, amount)

    def shr(self, amount: Val) -> Val:
        """Arithmetic right shift, per lane."""
        return self.map(self.k.b.ashr, amount)

    def maximum(self, other: Val) -> Val:
        """The greater of each pair of lanes."""
        return self.map(lambda x, y: self.k.intrinsic("smax", x, y), other)

    def minimum(self, other: Val) -> Val:
        """The lesser of each pair of lanes."""
        return self.map(lambda x, y: self.k.intrinsic("smin", x, y), other)

    def clamp(self, lo: int, hi: int) -> Val:
        """min(max(x, lo), hi); a bound at the end of the width costs nothing."""
        low, high = -(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1
        raised = self if lo <= low else self.maximum(self.splat(lo))
        return raised if hi >= high else raised.minimum(self.splat(hi))

    def sat(self, bits: int) -> Val:
        """Saturated to half the width (or a quarter), packed within 128-bit parts."""
        if bits == self.bits:
            return self
        pairs = zip(self.regs[::2], self.regs[1::2]) if len(self) > 1 else [(self.regs[0], self.regs[0])]
        half = Val(self.k, tuple(self.k.pack(x, y) for x, y in pairs), self.bits // 2)
        return half.sat(bits)

    def sext(self, bits: int) -> Val:
        """Widened within 128-bit parts: the inverse of `sat`, with twice the registers."""
        if bits == self.bits:
            return self
        regs = tuple(half for x in self.regs for half in self.k.unpack(x))
        return Val(self.k, regs, self.bits * 2).sext(bits)

    def mul_q15(self, other: Val) -> Val:
        """(a * b + 2^14) >> 15 on 16-bit lanes."""
        if self.bits != 16:
            raise MixedWidths(f"mul_q15 needs 16-bit lanes, found {self.bits}")
        if self.k.target.arch == "aarch64":
            return self.map(lambda x, y: instrs.SQRDMULH(self.k, x, y), other)
        return self.map(lambda x, y: instrs.MULHRS[self.k.target.vector_bits](self.k, x, y), other)

    def mul_wide(self, other: Val) -> Val:
        """The product of 16-bit lanes in 32 bits, widened within 128-bit parts as `sext` does."""
        if self.bits != 16 or other.bits != 16:
            raise MixedWidths(f"mul_wide needs 16-bit lanes, found {self.bits} and {other.bits}")
        k = self.k
        if k.target.arch == "aarch64":
            return self.sext(32) * (other.sext(32) if len(other) == len(self) else other.repeat(len(self)).sext(32))
        high = self.map(lambda x, y: instrs.MULH[k.target.vector_bits](k, x, y), other)
        halves = (half.regs[0] for low, up in zip((self * other).regs, high.regs) for half in k.zip(self._like([low]), self._like([up])))
        return Val(k, tuple(k.b.bitcast(h, k.register_type(32)) for h in halves), 32)

    def splat(self, value: int) -> Val:
        """A constant in every lane of one register of this width."""
        return self.k.splat(value, self.bits)

    def repeat(self, count: int) -> Val:
        """The registers `count` times over."""
        return self._like(self.regs * count)


def join(vals: Sequence[Val]) -> Val:
    """One bundle of the registers of several."""
    return Val(vals[0].k, tuple(r for v in vals for r in v.regs), vals[0].bits)


def registers_of(c: Val | Ptr | Index) -> tuple[Any, ...]:
    """What a loop carries of `c`."""
    return c.regs if isinstance(c, Val) else (c.ir,)


def rebuilt(c: Carried, regs: Sequence[Any]) -> Carried:
    """`c` with these in place of its registers."""
    if isinstance(c, Val):
        return cast(Carried, Val(c.k, tuple(regs), c.bits))
    return cast(Carried, type(c)(c.k, regs[0]))
