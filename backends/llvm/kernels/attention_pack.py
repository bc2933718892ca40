"""Operands of attention from where they lie to where its products want them: keys, values, queries and masks."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from qcompiler.backends.llvm.dsl import I32, Index, Kernel, Ptr, Val

from . import attention_plan as at
from .activation_products import CHUNK, first_lanes, key_chunks, prepare_row, value_chunks
from .attention_plan import AttentionConfig
from .rows import load_row


def pack_keys(k: Kernel, c: AttentionConfig, keys: Ptr, numbers: Ptr, slot: Ptr) -> None:
    """All keys of a head, block by block, and the constants of each."""
    full = c.blocks - 1 if c.last_keys < c.block else c.blocks
    to, step = slot + c.packed["keys"], c.block * c.strides[1][1]
    if full:
        with k.loop(full) as (i, _):
            _pack_key_block(k, c, keys + i * step, c.block, 4, numbers, slot, to + i * c.key_block_bytes)
    if full < c.blocks:
        _pack_key_block(k, c, keys + full * step, c.last_keys, c.last_count, numbers, slot, to + full * c.key_block_bytes)


def _pack_key_block(k: Kernel, c: AttentionConfig, keys: Ptr, n: int, count: int, numbers: Ptr, slot: Ptr, to: Ptr) -> None:
    """n keys; chunk (group, part l, register j) holds those from 4 (count l + j) on."""
    rows, size, narrow = slot + c.packed["rows"], c.target.vector_bytes, k.narrowed(128)
    zero = k.broadcast(numbers + at.KEY_ZERO, 16)
    with k.loop(n) as (i, _):
        prepare_row(k, c.form, keys + i * c.strides[1][1], c.sizes.d, c.spaces[1], rows + i * c.query_bytes, 0, zero)
    with k.loop(c.target.parts) as (part, _), k.loop(count) as (j, _), k.loop(c.stored_key_groups // 4) as (four, _):
        source = rows + part * (4 * count * c.query_bytes) + j * (4 * c.query_bytes) + four * CHUNK
        chunks = key_chunks(narrow, c.form, [source + r * c.query_bytes for r in range(4)])
        target = to + part * CHUNK + j * size + four * (4 * count * size)
        for i, chunk in enumerate(chunks):
            narrow.store(target + i * count * size, chunk)
    if c.form.bits == 8:
        _key_constants(k, c, count, numbers, to)


def _key_constants(k: Kernel, c: AttentionConfig, count: int, numbers: Ptr, block: Ptr) -> None:
    """KEY_FACTOR sum_d k + KEY_ADDEND for each key of a packed block."""
    size, one = c.target.vector_bytes, c.form.operand(k, k.splat(1, 8).regs[0])
    with k.loop(c.key_groups, [k.splat(0, 32).repeat(count)]) as (i, carried):
        weights = k.load(block + i * (count * size), 8, count, align=size)
        carried[0] = Val(k, tuple(c.form.scores(k, a, one, w) for a, w in zip(carried[0].regs, weights.regs)), 32)
    constants = carried[0] * k.broadcast(numbers + at.KEY_FACTOR, 32) + k.broadcast(numbers + at.KEY_ADDEND, 32)
    for j, register in enumerate(constants.regs):
        k.store(block + c.stored_key_groups * 4 * size + j * size, Val(k, (register,), 32))


def pack_values(k: Kernel, c: AttentionConfig, values: Ptr, slot: Ptr) -> None:
    """All values of a head, a block of keys at a time."""
    full, step = c.sizes.m // c.block, c.block * c.strides[2][1]
    if full:
        with k.loop(full) as (i, _):
            _pack_value_block(k, c, values + i * step, c.block, slot, i)
    if full < c.blocks:
        _pack_value_block(k, c, values + full * step, c.last_keys, slot, full)


def _pack_value_block(k: Kernel, c: AttentionConfig, values: Ptr, n: int, slot: Ptr, block: Index | int) -> None:
    """Values of n keys into all blocks of channels; what lies behind the last key is multiplied by 0."""
    rows, size, group = slot + c.packed["rows"], c.target.vector_bytes, c.form.group
    with k.loop(n) as (i, _):
        prepare_row(k, c.form, values + i * c.strides[2][1], c.sizes.e, c.spaces[2], rows + i * c.value_bytes, c.form.value_offset)
    to = slot + c.packed["values"]
    for start, count in c.channels:
        first = to + block * (c.value_groups * count * size)
        with k.loop(-(-n // group)) as (i, _):
            source = rows + i * (group * c.value_bytes) + start * c.form.bits // 8
            _pack_values(k, c, source, count, first + i * (count * size))
        to += c.value_groups * c.blocks * count * size


def _pack_values(k: Kernel, c: AttentionConfig, source: Ptr, count: int, to: Ptr) -> None:
    """One group of keys, the channels of one block: channels from 4 (count l + j) on to part l of register j."""
    narrow, here = k.narrowed(128), count * c.target.lanes
    with k.loop(-(-here // 16)) as (sixteen, _):
        rows = [source + r * c.value_bytes + sixteen * (2 * c.form.bits) for r in range(c.form.group)]
        target = to + sixteen * (4 // count * CHUNK)
        for i, chunk in enumerate(value_chunks(narrow, c.form, rows)[: here // 4]):
            narrow.store(target + i // count * CHUNK + i % count * c.target.vector_bytes, chunk)


def prepare_queries(k: Kernel, c: AttentionConfig, q: Ptr, numbers: Ptr, slot: Ptr) -> None:
    """A tile of queries, and for 8-bit forms ROW_FACTOR sum_d (q + offset) of each."""
    form, size = c.form, c.target.vector_bytes
    zero, factor = k.broadcast(numbers + at.QUERY_ZERO, 16), k.b.load((numbers + at.ROW_FACTOR).ir, align=4, typ=I32)
    with k.loop(c.tile) as (r, _):
        to = slot + c.areas["queries"] + r * c.query_bytes
        prepare_row(k, form, q + r * c.strides[0][1], c.sizes.d, c.spaces[0], to, form.query_offset, zero)
        if form.bits == 8:
            acc, one = k.splat(0, 32).regs[0], k.splat(1, 8).regs[0]
            for start in range(0, c.sizes.d, size):
                acc = form.scores(k, acc, form.operand(k, k.load(to + start, 8).regs[0]), one)
            total = reduced(Val(k, (acc,), 32), "add")
            k.b.store(k.b.mul(total, factor), (slot + c.areas["numbers"] + r * at.ROW_NUMBERS).ir, align=4)


def reduced(x: Val, operation: str) -> Any:
    """The lanes of one register combined by LLVM's `operation`, as an integer of their width."""
    k, (register,) = x.k, x.regs
    name = f"llvm.vector.reduce.{operation}.v{register.type.count}i{x.bits}"
    kind = ir.FunctionType(register.type.element, [register.type])
    return k.b.call(k.module.globals.get(name) or ir.Function(k.module, kind, name), [register])


def prepare_mask(k: Kernel, c: AttentionConfig, mask: Ptr, to: Ptr) -> None:
    """One row of plain bytes, zeros behind its end."""
    assert c.mask is not None
    stride, full = c.mask[3], c.sizes.m // c.block
    if full:
        with k.loop(full) as (i, _):
            k.store(to + i * c.block, load_row(k, mask + i * (c.block * stride), c.block, c.mask_space, stride))
    if full < c.blocks:
        row = load_row(k, mask + full * c.block * stride, c.last_keys, c.mask_space, stride)
        k.store(to + full * c.block, first_lanes(k, row, c.last_keys))
