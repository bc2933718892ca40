"""Table lookup of every 8-bit lane: 256 entries, index x + 128.

x86 shuffles 16 entries at a time: for row i, x + 128 xor 16 i is below 16 exactly where the high nibble is i, and adding 0x70 with unsigned
saturation sets bit 7 in all others, for which pshufb gives zero; sixteen rows are or-ed. AArch64 looks up 64 entries at a time with tbl/tbx.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from . import instrs
from .dsl import I8, I32, I64, Kernel, Ptr, Val

TABLE = 256
"""Bytes of a table."""


def emit_lookup(x: Val, table: Ptr) -> Val:
    """table[x + 128] for each 8-bit lane."""
    return emit_lookup_in(x, table_rows(x.k, table))


def table_rows(k: Kernel, table: Ptr) -> list[Any]:
    """The registers of a table, for `emit_lookup_in`."""
    return [_row(k, table + 16 * i) for i in range(16)]


def emit_lookup_in(x: Val, rows: list[Any]) -> Val:
    """As `emit_lookup`, of a table that has been loaded."""
    return (x ^ x.splat(-128)).map(lambda r: _shuffled(x.k, r, rows))


def emit_word_lookup(index: Val, table: Val) -> Val:
    """table[index] - 128 for 16-bit lanes in [0, 255], in words; `table` is four registers of `word_table`, 64 words to a permutation."""
    k, b, splat = index.k, index.k.b, instrs.splat

    def found(i: Any) -> Any:
        low, high = (instrs.VPERMI2W(k, table.regs[n], i, table.regs[n + 1]) for n in (0, 2))
        second = b.icmp_signed("!=", b.and_(i, splat(i.type, 64)), splat(i.type, 0))
        pair = b.select(second, high, low)
        to_the_top = b.and_(b.lshr(b.xor(i, splat(i.type, 128)), splat(i.type, 4)), splat(i.type, 8))
        return b.ashr(b.shl(pair, to_the_top), splat(i.type, 8))

    return index.map(found)


def word_table(table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """256 bytes as words (table[i], table[i + 128]), 128 less each, for `emit_word_lookup`."""
    return np.ascontiguousarray((table ^ np.uint8(128)).reshape(2, 128).T)


def _row(k: Kernel, p: Ptr) -> Any:
    """16 bytes in every 128-bit part."""
    row = k.b.load(p.ir, align=1, typ=instrs.vector_type((16, 8)))
    return instrs.pick(k.b, row, [i % 16 for i in range(k.target.vector_bytes)])


def _shuffled(k: Kernel, x: Any, rows: list[Any]) -> Any:
    if k.target.arch == "aarch64":
        return _tbl(k, x, rows)
    total = None
    for i, row in enumerate(rows):
        index = k.intrinsic("uadd.sat", k.b.xor(x, instrs.splat(x.type, 16 * i)), instrs.splat(x.type, 0x70))
        piece = instrs.PSHUFB[k.target.vector_bits](k, row, index)
        total = piece if total is None else k.b.or_(total, piece)
    return total


def _tbl(k: Kernel, x: Any, rows: list[Any]) -> Any:
    """Indices past 63 give zero in tbl4: four lookups of x - 64 i, or-ed."""
    total = None
    for i in range(4):
        piece = instrs.TBL4(k, *rows[4 * i : 4 * i + 4], k.b.sub(x, instrs.splat(x.type, 64 * i)))
        total = piece if total is None else k.b.or_(total, piece)
    return total


def emit_channel_lookup(x: Val, tables: Ptr, channels: Sequence[int | None]) -> Val:
    """tables[channel][x + 128] lane by lane, `channels` giving each lane's; lanes without one are unspecified."""
    k, (reg,) = x.k, (x ^ x.splat(-128)).regs
    found = ir.Constant(reg.type, ir.Undefined)
    for lane, channel in enumerate(channels):
        if channel is not None:
            index = k.b.zext(k.b.extract_element(reg, ir.Constant(I32, lane)), I64)
            entry = k.b.gep((tables + channel * TABLE).ir, [index], source_etype=I8)
            found = k.b.insert_element(found, k.b.load(entry, typ=I8), ir.Constant(I32, lane))
    return Val(k, (found,), 8)
