"""Named instructions as data that carry their own meaning.

An `Instr` is called with the DSL's kernel and raw LLVM values. On its own target it becomes its intrinsic; on a
`by_meaning` target it becomes `meaning`: generic code of the same bits, which any CPU runs. One parametrised test runs each
against its meaning and finds its mnemonic in the assembly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llvmlite import ir

if TYPE_CHECKING:
    from .dsl import Kernel

Vector = tuple[int, int]
"""(lanes, bits) of a vector type."""
Meaning = Callable[..., Any]


def vector_type(vector: Vector) -> Any:
    """LLVM's <lanes x ibits>."""
    return ir.VectorType(ir.IntType(vector[1]), vector[0])


@dataclass(frozen=True)
class Instr:
    """One machine instruction."""

    name: str
    """Mnemonic, as the assembler prints it."""
    feature: str
    """LLVM feature that has it."""
    intrinsic: str
    params: tuple[Vector, ...]
    returns: Vector
    meaning: Meaning
    """meaning(builder, *values): generic code of the same bits."""

    def __call__(self, k: Kernel, *args: Any) -> Any:
        """Emit the instruction."""
        if k.target.by_meaning:
            return self.meaning(k.b, *args)
        return k.b.call(self.declare(k.module), args)

    def declare(self, module: Any) -> Any:
        """The intrinsic's declaration in `module`."""
        found = module.globals.get(self.intrinsic)
        kind = ir.FunctionType(vector_type(self.returns), [vector_type(p) for p in self.params])
        return found if found is not None else ir.Function(module, kind, self.intrinsic)


def prefetch(k: Kernel, pointer: Any) -> None:
    """Fetch the line at `pointer`, which may be any address, into the second-level cache."""
    word = ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [pointer.type, word, word, word])
    function = k.module.globals.get("llvm.prefetch.p0") or ir.Function(k.module, kind, "llvm.prefetch.p0")
    k.b.call(function, [pointer, *(ir.Constant(word, n) for n in (0, 2, 1))])


# --- generic pieces that meanings are made of ------------------------------------------------------------------------


def splat(like: Any, value: int) -> Any:
    """A constant of `like`'s vector type."""
    return vector(like, [value] * like.count)


def vector(like: Any, values: Sequence[int]) -> Any:
    """A constant of `like`'s vector type, lane by lane."""
    return ir.Constant(like, list(values))


def shuffle(b: Any, x: Any, y: Any, picks: list[int]) -> Any:
    """Elements of x followed by y picked by index."""
    return b.shuffle_vector(x, y, ir.Constant(ir.VectorType(ir.IntType(32), len(picks)), picks))


def pick(b: Any, x: Any, picks: list[int]) -> Any:
    """Elements of x picked by index."""
    return shuffle(b, x, ir.Constant(x.type, ir.Undefined), picks)


def widen(b: Any, x: Any, bits: int, signed: bool = True) -> Any:
    """Every lane in `bits` bits."""
    kind = vector_type((x.type.count, bits))
    return b.sext(x, kind) if signed else b.zext(x, kind)


def bounded(b: Any, x: Any, lo: int, hi: int) -> Any:
    """min(max(x, lo), hi)."""
    low, high = splat(x.type, lo), splat(x.type, hi)
    x = b.select(b.icmp_signed(">", x, low), x, low)
    return b.select(b.icmp_signed("<", x, high), x, high)


def saturated(b: Any, x: Any, bits: int) -> Any:
    """Every lane saturated to `bits` bits, and as narrow."""
    clipped = bounded(b, x, -(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    return b.trunc(clipped, vector_type((x.type.count, bits)))


def adjacent_sums(b: Any, x: Any, group: int) -> Any:
    """Sums of `group` neighbouring lanes."""
    lanes = x.type.count
    terms = [pick(b, x, list(range(i, lanes, group))) for i in range(group)]
    total = terms[0]
    for t in terms[1:]:
        total = b.add(total, t)
    return total


def _dot4(signed_x: bool, signed_w: bool = True) -> Meaning:
    def meaning(b: Any, acc: Any, x: Any, w: Any) -> Any:
        cast = vector_type((4 * acc.type.count, 8))
        wide = (widen(b, b.bitcast(x, cast), 32, signed_x), widen(b, b.bitcast(w, cast), 32, signed_w))
        return b.add(acc, adjacent_sums(b, b.mul(*wide), 4))

    return meaning


def _maddubs(b: Any, x: Any, w: Any) -> Any:
    products = b.mul(widen(b, x, 32, signed=False), widen(b, w, 32))
    return saturated(b, adjacent_sums(b, products, 2), 16)


def _madd(b: Any, x: Any, w: Any) -> Any:
    return adjacent_sums(b, b.mul(widen(b, x, 32), widen(b, w, 32)), 2)


def _sign(b: Any, x: Any, by: Any) -> Any:
    zero = splat(x.type, 0)
    nonzero = b.select(b.icmp_signed("==", by, zero), zero, x)
    return b.select(b.icmp_signed("<", by, zero), b.sub(zero, x), nonzero)


def _pack(b: Any, x: Any, y: Any) -> Any:
    """x and y saturated to half width, interleaved by 128-bit parts: x0 y0 x1 y1 ..."""
    lanes, bits = x.type.count, x.type.element.width
    part = 128 // bits
    picks = [src * lanes + p * part + e for p in range(lanes // part) for src in (0, 1) for e in range(part)]
    return saturated(b, shuffle(b, x, y, picks), bits // 2)


def _narrow(b: Any, x: Any) -> Any:
    return saturated(b, x, x.type.element.width // 2)


def _mulhrs(b: Any, x: Any, y: Any) -> Any:
    """(x * y + 2^14) >> 15, its low 16 bits."""
    wide = b.mul(widen(b, x, 32), widen(b, y, 32))
    rounded = b.ashr(b.add(wide, splat(wide.type, 1 << 14)), splat(wide.type, 15))
    return b.trunc(rounded, x.type)


def _mulh(b: Any, x: Any, y: Any) -> Any:
    """(x * y) >> 16."""
    wide = b.mul(widen(b, x, 32), widen(b, y, 32))
    return b.trunc(b.ashr(wide, splat(wide.type, 16)), x.type)


def _mulh_unsigned(b: Any, x: Any, y: Any) -> Any:
    wide = b.mul(widen(b, x, 32, signed=False), widen(b, y, 32, signed=False))
    return b.trunc(b.lshr(wide, splat(wide.type, 16)), x.type)


def _qrdmulh(b: Any, x: Any, y: Any) -> Any:
    """sat16((2 x y + 2^15) >> 16): as _mulhrs, but -2^15 squared saturates."""
    wide = b.mul(widen(b, x, 32), widen(b, y, 32))
    rounded = b.ashr(b.add(wide, splat(wide.type, 1 << 14)), splat(wide.type, 15))
    return saturated(b, rounded, 16)


def _dot2(b: Any, acc: Any, x: Any, w: Any) -> Any:
    return b.add(acc, _madd(b, x, w))


def _mull(b: Any, x: Any, y: Any) -> Any:
    bits = 2 * x.type.element.width
    return b.mul(widen(b, x, bits), widen(b, y, bits))


def _mull_unsigned(b: Any, x: Any, y: Any) -> Any:
    return b.mul(widen(b, x, 16, signed=False), widen(b, y, 16, signed=False))


def _pairwise_accumulate(b: Any, x: Any) -> Any:
    return adjacent_sums(b, widen(b, x, 32), 2)


def _matrix(b: Any, acc: Any, x: Any, y: Any) -> Any:
    """acc[i, j] + sum over k < 8 of x[i, k] y[j, k], for i, j < 2."""

    def rows(v: Any, picks: tuple[int, ...]) -> Any:
        return pick(b, widen(b, v, 32), [8 * row + i for row in picks for i in range(8)])

    return b.add(acc, adjacent_sums(b, b.mul(rows(x, (0, 0, 1, 1)), rows(y, (0, 1, 0, 1))), 8))


def _pairwise_sums(b: Any, x: Any, y: Any) -> Any:
    """Sums of neighbours of x followed by y."""
    return adjacent_sums(b, shuffle(b, x, y, list(range(2 * x.type.count))), 2)


def _pairwise_unsigned(b: Any, x: Any) -> Any:
    return adjacent_sums(b, widen(b, x, 32, signed=False), 2)


def _pshufb(b: Any, x: Any, index: Any) -> Any:
    """Per 128-bit part: byte (index & 15) of x, or 0 where bit 7 of the index is set."""
    total = splat(x.type, 0)
    for lane in range(16):
        entry = pick(b, x, [i - i % 16 + lane for i in range(x.type.count)])
        hit = b.icmp_signed("==", b.and_(index, splat(x.type, 0x8F - 256)), splat(x.type, lane))
        total = b.select(hit, entry, total)
    return total


def _tbl4(b: Any, *args: Any) -> Any:
    """Byte `index` of four concatenated registers, or 0 past the end."""
    *rows, index = args
    total = splat(index.type, 0)
    for lane in range(64):
        entry = pick(b, rows[lane // 16], [lane % 16] * 16)
        total = b.select(b.icmp_signed("==", index, splat(index.type, lane)), entry, total)
    return total


def _permute_words(b: Any, x: Any, index: Any, y: Any) -> Any:
    """Word `index` & 63 of x followed by y."""
    low, total = b.and_(index, splat(index.type, 63)), splat(x.type, 0)
    for lane in range(64):
        entry = pick(b, (x, y)[lane // 32], [lane % 32] * 32)
        total = b.select(b.icmp_signed("==", low, splat(index.type, lane)), entry, total)
    return total


# --- the table ------------------------------------------------------------------------------------------------------


def _vpdpbusd(bits: int, feature: str) -> Instr:
    dwords, data = (bits // 32, 32), (bits // 8, 8)
    return Instr("vpdpbusd", feature, f"llvm.x86.avx512.vpdpbusd.{bits}", (dwords, data, data), dwords, _dot4(signed_x=False))


def _vpdpwssd(bits: int, feature: str) -> Instr:
    dwords, data = (bits // 32, 32), (bits // 16, 16)
    return Instr("vpdpwssd", feature, f"llvm.x86.avx512.vpdpwssd.{bits}", (dwords, data, data), dwords, _dot2)


def _x86(name: str, feature: str, intrinsic: str, source: Vector, result: Vector, meaning: Meaning, operands: int = 2) -> Instr:
    return Instr(name, feature, f"llvm.x86.{intrinsic}", (source,) * operands, result, meaning)


VPDPBUSD = {bits: _vpdpbusd(bits, "avx512vnni" if bits == 512 else "avxvnni") for bits in (128, 256, 512)}
VPDPWSSD = {bits: _vpdpwssd(bits, "avx512vnni" if bits == 512 else "avxvnni") for bits in (128, 256, 512)}
MADDUBS = {
    128: _x86("pmaddubsw", "ssse3", "ssse3.pmadd.ub.sw.128", (16, 8), (8, 16), _maddubs),
    256: _x86("vpmaddubsw", "avx2", "avx2.pmadd.ub.sw", (32, 8), (16, 16), _maddubs),
    512: _x86("vpmaddubsw", "avx512bw", "avx512.pmaddubs.w.512", (64, 8), (32, 16), _maddubs),
}
MADD = {
    128: _x86("pmaddwd", "sse2", "sse2.pmadd.wd", (8, 16), (4, 32), _madd),
    256: _x86("vpmaddwd", "avx2", "avx2.pmadd.wd", (16, 16), (8, 32), _madd),
    512: _x86("vpmaddwd", "avx512bw", "avx512.pmaddw.d.512", (32, 16), (16, 32), _madd),
}
SIGN = {
    128: _x86("psignb", "ssse3", "ssse3.psign.b.128", (16, 8), (16, 8), _sign),
    256: _x86("vpsignb", "avx2", "avx2.psign.b", (32, 8), (32, 8), _sign),
}
PACK16 = {
    128: _x86("packssdw", "sse2", "sse2.packssdw.128", (4, 32), (8, 16), _pack),
    256: _x86("vpackssdw", "avx2", "avx2.packssdw", (8, 32), (16, 16), _pack),
    512: _x86("vpackssdw", "avx512bw", "avx512.packssdw.512", (16, 32), (32, 16), _pack),
}
PACK8 = {
    128: _x86("packsswb", "sse2", "sse2.packsswb.128", (8, 16), (16, 8), _pack),
    256: _x86("vpacksswb", "avx2", "avx2.packsswb", (16, 16), (32, 8), _pack),
    512: _x86("vpacksswb", "avx512bw", "avx512.packsswb.512", (32, 16), (64, 8), _pack),
}
MULHRS = {
    128: _x86("pmulhrsw", "ssse3", "ssse3.pmul.hr.sw.128", (8, 16), (8, 16), _mulhrs),
    256: _x86("vpmulhrsw", "avx2", "avx2.pmul.hr.sw", (16, 16), (16, 16), _mulhrs),
    512: _x86("vpmulhrsw", "avx512bw", "avx512.pmul.hr.sw.512", (32, 16), (32, 16), _mulhrs),
}
MULH = {
    128: _x86("pmulhw", "sse2", "sse2.pmulh.w", (8, 16), (8, 16), _mulh),
    256: _x86("vpmulhw", "avx2", "avx2.pmulh.w", (16, 16), (16, 16), _mulh),
    512: _x86("vpmulhw", "avx512bw", "avx512.pmulh.w.512", (32, 16), (32, 16), _mulh),
}
PSHUFB = {
    128: _x86("pshufb", "ssse3", "ssse3.pshuf.b.128", (16, 8), (16, 8), _pshufb),
    256: _x86("vpshufb", "avx2", "avx2.pshuf.b", (32, 8), (32, 8), _pshufb),
    512: _x86("vpshufb", "avx512bw", "avx512.pshuf.b.512", (64, 8), (64, 8), _pshufb),
}
PMULHUW = _x86("pmulhuw", "sse2", "sse2.pmulhu.w", (8, 16), (8, 16), _mulh_unsigned)
VPERMI2W = Instr("vpermi2w", "avx512bw", "llvm.x86.avx512.vpermi2var.hi.512", ((32, 16),) * 3, (32, 16), _permute_words)
SDOT = Instr("sdot", "dotprod", "llvm.aarch64.neon.sdot.v4i32.v16i8", ((4, 32), (16, 8), (16, 8)), (4, 32), _dot4(signed_x=True))
UDOT = Instr("udot", "dotprod", "llvm.aarch64.neon.udot.v4i32.v16i8", ((4, 32), (16, 8), (16, 8)), (4, 32), _dot4(signed_x=False, signed_w=False))
SMMLA = Instr("smmla", "i8mm", "llvm.aarch64.neon.smmla.v4i32.v16i8", ((4, 32), (16, 8), (16, 8)), (4, 32), _matrix)
ADDP = Instr("addp", "neon", "llvm.aarch64.neon.addp.v4i32", ((4, 32), (4, 32)), (4, 32), _pairwise_sums)
UMULL = Instr("umull", "neon", "llvm.aarch64.neon.umull.v8i16", ((8, 8), (8, 8)), (8, 16), _mull_unsigned)
UADDLP = Instr("uaddlp", "neon", "llvm.aarch64.neon.uaddlp.v4i32.v8i16", ((8, 16),), (4, 32), _pairwise_unsigned)
SMULL = Instr("smull", "neon", "llvm.aarch64.neon.smull.v8i16", ((8, 8), (8, 8)), (8, 16), _mull)
SMULL16 = Instr("smull", "neon", "llvm.aarch64.neon.smull.v4i32", ((4, 16), (4, 16)), (4, 32), _mull)
SADDLP = Instr("saddlp", "neon", "llvm.aarch64.neon.saddlp.v4i32.v8i16", ((8, 16),), (4, 32), _pairwise_accumulate)
SQRDMULH = Instr("sqrdmulh", "neon", "llvm.aarch64.neon.sqrdmulh.v8i16", ((8, 16), (8, 16)), (8, 16), _qrdmulh)
SQXTN16 = Instr("sqxtn", "neon", "llvm.aarch64.neon.sqxtn.v4i16", ((4, 32),), (4, 16), _narrow)
SQXTN8 = Instr("sqxtn", "neon", "llvm.aarch64.neon.sqxtn.v8i8", ((8, 16),), (8, 8), _narrow)
TBL4 = Instr("tbl", "neon", "llvm.aarch64.neon.tbl4.v16i8", ((16, 8),) * 5, (16, 8), _tbl4)

INSTRS: tuple[Instr, ...] = (
    *(i for table in (VPDPBUSD, VPDPWSSD, MADDUBS, MADD, SIGN, PACK16, PACK8, MULHRS, MULH, PSHUFB) for i in table.values()),
    PMULHUW,
    VPERMI2W,
    SDOT,
    UDOT,
    SMMLA,
    ADDP,
    SMULL,
    SMULL16,
    UMULL,
    SADDLP,
    UADDLP,
    SQRDMULH,
    SQXTN16,
    SQXTN8,
    TBL4,
)
"""Every row, for the tests."""
