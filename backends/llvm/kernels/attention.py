"""Attention as one kernel: `numerics.attention` for each head, a tile of rows at a time, so that logits stay in the first cache.

    keys and values of the head are packed, once for all of its queries (and all heads that share them)
    for each tile of rows:
        logits        q k^T by blocks of keys -> 16 bits, + bias, hidden ones -2^15
        exponentials  greatest of the row; then 8-bit differences, table, sum; written over the logits
        result        e v by blocks of channels -> requantized with the multiplier of the row

Threads divide the loop over batch or heads, or that over tiles of rows; each piece has a slot of working memory of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from llvmlite import ir

from qcompiler.backends.llvm import instrs
from qcompiler.backends.llvm.dsl import I32, I64, WHOLE_BITS, Carried, Index, Kernel, Ptr, Val
from qcompiler.backends.llvm.epilogue import store_pixels
from qcompiler.backends.llvm.launch import Address, Argument, Data, Launch, Nothing
from qcompiler.backends.llvm.lookup import emit_lookup_in, emit_word_lookup, table_rows, word_table
from qcompiler.backends.llvm.target import Target
from qcompiler.ir.integer import IntAttention
from qcompiler.numerics.attention import MASKED
from qcompiler.numerics.requantize import requantize_biased, requantize_wide_biased
from qcompiler.passes.layouts import Space
from qcompiler.passes.plan_memory import Run

from . import attention_plan as at
from .activation_products import XOperand, word_order
from .attention_pack import pack_keys, pack_values, prepare_mask, prepare_queries, reduced
from .attention_plan import AttentionConfig, bias_words, config_of, launch_numbers
from .rows import constant_data, data_of, operands, result_of, walk

Count = Index | int
Mac = Callable[[Kernel, Any, XOperand, Any], Any]


def plan_attention(run: Run, target: Target) -> Iterable[Launch]:
    """`IntAttention`."""
    v = run.step.producer
    op, inputs, y = v.op, operands(run), result_of(run)
    assert isinstance(op, IntAttention)
    assert run.scratch is not None
    q, k, values = inputs[:3]
    every = (q, k, values, y)
    strides, spaces = tuple(x.layout.strides for x in every), tuple(x.space for x in every)
    c = config_of(run.step, target, strides, spaces)  # type: ignore[arg-type]
    bias: Argument = Nothing()
    mask: Argument = Nothing()
    if op.bias:
        bias_data = np.asarray(data_of(v.inputs[4]), np.int16)
        words = bias_words(bias_data, c)
        steps = tuple(0 if d == 1 else s for d, s in zip(words.shape[:3], words.strides[:3]))
        c, bias = replace(c, bias=steps, bias_hides=bool((bias_data <= MASKED).any())), constant_data(words)
    if op.mask:
        seen = inputs[-1]
        c = replace(c, mask=seen.broadcast_strides((c.sizes.b, c.sizes.h, c.sizes.n, c.sizes.m)), mask_space=seen.space)
        mask = seen.argument
    octets = np.asarray(data_of(v.inputs[3]), np.uint8)
    table = Data((word_table(octets) if c.by_words else octets).tobytes())
    numbers = Data(launch_numbers(op, q, k, values, y, c).astype(np.int32).tobytes())
    arguments = (q.argument, k.argument, values.argument, y.argument, bias, mask, table, numbers, Address.of(run.scratch))
    names = ("q", "k", "v", "y", "bias", "mask", "table", "numbers", "scratch")
    if c.by_rows:
        here = dict(zip(names, arguments))
        packed = ("k", "v", "numbers", "scratch")
        yield Launch(emit_packing, c, packed, tuple(here[n] for n in packed), run.step.result.name)
    yield Launch(emit_rows if c.by_rows else emit_attention, c, names, arguments, run.step.result.name)


@dataclass(frozen=True)
class Head:
    """Pointers to what one head reads and writes: its operands, the launch's constants, packed keys and values, and its slot's parts."""

    k: Kernel
    c: AttentionConfig
    q: Ptr
    y: Ptr
    bias: Ptr
    mask: Ptr
    table: Ptr
    numbers: Ptr
    packed: Ptr
    slot: Ptr

    def part(self, name: str) -> Ptr:
        """Where a part of the packed operands or of the slot begins."""
        return self.packed + self.c.packed[name] if name in self.c.packed else self.slot + self.c.areas[name]

    def number(self, position: int, bits: int = 32) -> Val:
        """A number of the launch in all lanes."""
        return self.k.broadcast(self.numbers + position, bits)

    def row_number(self, row: int, position: int, bits: int = 32) -> Val:
        """A number of a row in all lanes."""
        return self.k.broadcast(self.part("numbers") + row * at.ROW_NUMBERS + position, bits)


def emit_attention(k: Kernel, c: AttentionConfig) -> None:
    """The body of a function of ("q", "k", "v", "y", "bias", "mask", "table", "numbers", "scratch"), divided by heads."""
    *moving, table, numbers, scratch = k.parameters
    shared, number = c.sizes.h // c.sizes.g, _slot(k, c)
    packed = scratch + number * c.packed["end"]
    slot = scratch + c.packed_slots * c.packed["end"] + number * c.areas["end"]
    steps = _steps(c)
    strides = [(batch, head if n in (1, 2) else shared * head) for n, (batch, head) in enumerate(steps)]
    with walk(k, (c.sizes.b, c.sizes.g), strides, moving) as ((q, keys, values, *others), _):
        pack_keys(k, c, keys, numbers, packed)
        pack_values(k, c, values, packed)
        with k.loop(shared) as (i, _):
            here = [p + i * steps[n][1] for n, p in zip((0, 3, 4, 5), (q, *others))]
            head = Head(k, c, here[0], here[1], here[2], here[3], table, numbers, packed, slot)
            _prepare_one_mask(head)
            with k.loop(-(-c.sizes.n // c.tile)) as (t, _):
                emit_tile(head, _first_row(c, t))


def emit_packing(k: Kernel, c: AttentionConfig) -> None:
    """The body of a function of ("k", "v", "numbers", "scratch"): keys and values of all heads."""
    keys, values, numbers, scratch = k.parameters
    slots = (c.sizes.g * c.packed["end"], c.packed["end"])
    with walk(k, (c.sizes.b, c.sizes.g), (*_steps(c)[1:3], slots), [keys, values, scratch]) as ((keys, values, packed), _):
        pack_keys(k, c, keys, numbers, packed)
        pack_values(k, c, values, packed)


def emit_rows(k: Kernel, c: AttentionConfig) -> None:
    """As `emit_attention`, divided by tiles of rows, behind `emit_packing`."""
    *moving, table, numbers, scratch = k.parameters
    slot = scratch + c.packed_slots * c.packed["end"] + _slot(k, c) * c.areas["end"]
    with k.split(c.tiles) as tile:
        heads, t = _divided(k, tile, -(-c.sizes.n // c.tile))
        batch, h = _divided(k, heads, c.sizes.h)
        group, _ = _divided(k, heads, c.sizes.h // c.sizes.g)
        q, _, _, y, bias, mask = (p + batch * s[0] + h * s[1] for p, s in zip(moving, _steps(c)))
        head = Head(k, c, q, y, bias, mask, table, numbers, scratch + group * c.packed["end"], slot)
        _prepare_one_mask(head)
        emit_tile(head, _first_row(c, t))


def _steps(c: AttentionConfig) -> list[tuple[int, int]]:
    """Bytes from one batch, and from one head, to the next: in q, k, v, y, bias and mask."""
    every = (*c.strides, c.bias or (0, 0, 0), c.mask or (0, 0, 0, 0))
    return [(s[0], s[2] if n < len(c.strides) else s[1]) for n, s in enumerate(every)]


def _divided(k: Kernel, n: Count, by: int) -> tuple[Count, Count]:
    """Quotient and remainder."""
    if isinstance(n, int) or by == 1:
        return (n // by, n % by) if isinstance(n, int) else (n, 0)
    return Index(k, k.b.udiv(n.ir, k.i64(by))), Index(k, k.b.urem(n.ir, k.i64(by)))


def _slot(k: Kernel, c: AttentionConfig) -> Count:
    """The slot of this piece. Pieces begin at i WHOLE / p for p <= slots, so that no two have the same floor(first slots / WHOLE)."""
    if k.span is None or c.slots == 1:
        return 0
    return Index(k, k.b.lshr(k.b.mul(k.span.first, k.i64(c.slots)), k.i64(WHOLE_BITS)))


def _first_row(c: AttentionConfig, tile: Count) -> Count:
    """Of a tile; the last one is moved back inside."""
    start = tile * c.tile
    return start.minimum(c.sizes.n - c.tile) if isinstance(start, Index) else start


def _prepare_one_mask(head: Head) -> None:
    """The row that serves all rows of a head, where there is one."""
    if head.c.mask is not None and head.c.mask_rows == 1 and not head.c.mask[2]:
        prepare_mask(head.k, head.c, head.mask, head.part("masks"))


def emit_tile(head: Head, n0: Count) -> None:
    """Rows n0 to n0 + tile."""
    k, c = head.k, head.c
    prepare_queries(k, c, head.q + n0 * c.strides[0][1], head.numbers, head.slot)
    if c.mask is not None and c.mask[2]:
        with k.loop(c.tile) as (r, _):
            step = c.mask[2]
            prepare_mask(k, c, head.mask + n0 * step + r * step, head.part("masks") + r * (c.blocks * c.block))
    emit_logits(head, n0)
    count = _seen_blocks(k, c, n0)[1] if c.causal else c.blocks
    with k.loop(c.tile) as (r, _):
        emit_exponentials(head, r, count)
    emit_results(head, n0, count)


# --- loops -----------------------------------------------------------------------------------------------------------


@contextmanager
def each(k: Kernel, n: Count, carry: Sequence[Carried] = (), first: Count = 0) -> Iterator[tuple[Count, list[Carried]]]:
    """Rounds `first` to n, numbers known at run time among them; n > first where both are constants."""
    if isinstance(n, int) and isinstance(first, int):
        with k.loop(n - first, carry) as (i, carried):
            yield (i + first), carried
        return
    start, end = (Index(k, k.i64(x)) for x in (first, n))
    every: list[Any] = [start, *carry]
    with k.rounds(Index(k, k.b.sub(end.ir, start.ir)), every) as state:
        inner = list(state[1:])
        yield state[0], inner
        state[:] = [state[0] + 1, *inner]
    inner[:] = state[1:]


def _seen_blocks(k: Kernel, c: AttentionConfig, n0: Count) -> tuple[Index, Index]:
    """Causal: blocks of keys that all rows of the tile see wholly, and that some row sees at all."""
    seen = Index(k, k.i64(n0)) + (c.sizes.m - c.sizes.n + 1)
    return _blocks_in(k, c, seen), _blocks_in(k, c, seen + (c.tile - 1 + c.block - 1))


def _blocks_in(k: Kernel, c: AttentionConfig, keys: Index) -> Index:
    positive = k.b.select(k.b.icmp_signed(">", keys.ir, k.i64(0)), keys.ir, k.i64(0))
    return Index(k, k.b.lshr(positive, k.i64(c.block.bit_length() - 1)))


def products(head: Head, mac: Mac, accs: list[Val], x: Ptr, row_bytes: int, w: Ptr, offsets: Sequence[int]) -> list[Val]:
    """accs of all rows + the groups at `offsets` of each row of x times registers that follow one another at w."""
    k, count, size = head.k, len(accs[0]), head.c.target.vector_bytes
    for n, offset in enumerate(offsets):
        weights = k.load(w + n * count * size, 8, count, align=size).regs
        for r, acc in enumerate(accs):
            group = head.c.form.x(k, x + r * row_bytes + offset)
            accs[r] = Val(k, tuple(mac(k, a, group, register) for a, register in zip(acc.regs, weights)), 32)
    return accs


UNROLL = 4


def linear_products(head: Head, mac: Mac, accs: list[Val], x: Ptr, row_bytes: int, w: Ptr, groups: Count) -> list[Val]:
    """As `products`, of `groups` groups (a multiple of 4 where it is not a constant) that lie one after the other."""
    k, step = head.k, UNROLL * len(accs[0]) * head.c.target.vector_bytes
    rounds = groups // UNROLL if isinstance(groups, int) else Index(k, k.b.lshr(groups.ir, k.i64(2)))
    if rounds != 0:
        with each(k, rounds, accs) as (i, carried):
            carried[:] = products(head, mac, list(carried), x + i * (4 * UNROLL), row_bytes, w + i * step, range(0, 4 * UNROLL, 4))
        accs = list(carried)
    rest = groups % UNROLL if isinstance(groups, int) else 0
    if rest and isinstance(groups, int):
        done = groups // UNROLL
        accs = products(head, mac, accs, x + done * 4 * UNROLL, row_bytes, w + done * step, range(0, 4 * rest, 4))
    return accs


# --- logits ----------------------------------------------------------------------------------------------------------


def emit_logits(head: Head, n0: Count) -> None:
    """The logits of a tile, by blocks of keys."""
    k, c = head.k, head.c
    if c.causal:
        full, count = _seen_blocks(k, c, n0)
        with each(k, full) as (block, _):
            emit_block(head, n0, block, 4)
        with each(k, count, first=full) as (block, _):
            emit_block(head, n0, block, 4, edge=True)
        return
    if c.whole_blocks:
        with each(k, c.whole_blocks) as (block, _):
            emit_block(head, n0, block, 4)
    if c.whole_blocks < c.blocks:
        emit_block(head, n0, c.blocks - 1, c.last_count)


def emit_block(head: Head, n0: Count, block: Count, count: int, edge: bool = False) -> None:
    """The logits of all rows with the keys of one block; `edge`: some of them lie behind a row's own position."""
    k, c = head.k, head.c
    keys, size = head.part("keys") + block * c.key_block_bytes, c.target.vector_bytes
    if c.form.bits == 8:
        constants = k.load(keys + c.stored_key_groups * 4 * size, 32, count, align=size)
        accs = [constants + head.row_number(r, 0) for r in range(c.tile)]
    else:
        accs = [head.number(at.KEY_ADDEND).repeat(count)] * c.tile
    accs = linear_products(head, c.form.scores, accs, head.part("queries"), c.query_bytes, keys, c.key_groups)
    for r, acc in enumerate(accs):
        x = _with_bias(head, _logits(head, acc), n0, r, block)
        x = _without_hidden(head, x, n0, r, block, count, edge)
        to = head.part("logits") + r * c.logits_bytes + block * (2 * size)
        for i, register in enumerate((*x.regs, k.splat(MASKED, 16).regs[0])[:2]):
            k.store(to + i * size, Val(k, (register,), 16))


def _logits(head: Head, acc: Val) -> Val:
    """One or two registers of 16 bits; where there is an odd number of 32 bits, the last one is packed twice."""
    if head.c.left_logits:
        acc = acc * head.number(at.LOGIT_LEFT)
    paired = acc if len(acc) % 2 == 0 or len(acc) == 1 else Val(head.k, (*acc.regs, acc.regs[-1]), 32)
    return requantize_wide_biased(paired, None, head.number(at.LOGIT_RIGHT), head.number(at.LOGIT_FACTOR, 16))


def _with_bias(head: Head, x: Val, n0: Count, row: int, block: Count) -> Val:
    k, c = head.k, head.c
    if c.bias is None:
        return x
    source = head.bias + n0 * c.bias[2] + row * c.bias[2] + block * (2 * c.target.vector_bytes)
    bias = k.load(source, 16, len(x))
    x = x.add_sat(bias).maximum(x.splat(MASKED + 1))
    return _hidden_where(x, "==", bias, x.splat(MASKED)) if c.bias_hides else x


def _hidden_where(x: Val, relation: str, a: Val, b: Val) -> Val:
    """x, -2^15 where `a relation b`."""
    builder, hidden = x.k.b, x.splat(MASKED).regs[0]
    pairs = zip(x.regs, a.regs * (len(x) // len(a)), b.regs * (len(x) // len(b)))
    return Val(x.k, tuple(builder.select(builder.icmp_signed(relation, p, q), hidden, r) for r, p, q in pairs), 16)


def _without_hidden(head: Head, x: Val, n0: Count, row: int, block: Count, count: int, edge: bool) -> Val:
    """x, hidden behind the last key, by the mask, and behind the row's own position."""
    k, c = head.k, head.c
    order = _constants(k, word_order(c.target, count))[: len(x)]
    if c.mask is not None:
        source = head.part("masks") + (row * c.blocks * c.block if c.mask_rows > 1 else 0) + block * c.block
        x = _hidden_where(x, "==", k.load(source, 8).sext(16), x.splat(0))
    elif not c.causal and isinstance(block, int) and block >= c.whole_blocks:
        absent = word_order(c.target, count)
        missing = np.where((absent < 0) | (absent >= c.last_keys), 1, 0)
        x = _hidden_where(x, "==", _constants(k, missing)[: len(x)], x.splat(1))
    if edge:
        last = Index(k, k.i64(n0)) + (row + c.sizes.m - c.sizes.n)
        x = _hidden_where(x, ">", order, _splat16(k, k.b.trunc(k.b.sub(last.ir, k.i64(block * c.block)), ir.IntType(16))))
    return x


def _constants(k: Kernel, values: np.ndarray[Any, Any]) -> Val:
    """16-bit constants, one per lane of two registers."""
    kind = k.register_type(16)
    halves = values.reshape(2, kind.count)
    return Val(k, tuple(ir.Constant(kind, [int(x) for x in half]) for half in halves), 16)


def _splat16(k: Kernel, value: Any) -> Val:
    """A 16-bit integer in all lanes."""
    kind = k.register_type(16)
    one = k.b.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(I32, 0))
    return Val(k, (instrs.pick(k.b, one, [0] * kind.count),), 16)


# --- exponentials ----------------------------------------------------------------------------------------------------


def emit_exponentials(head: Head, row: Count, blocks: Count) -> None:
    """Those of one row, written over its logits, and the numbers that its results are requantized with."""
    k, c, size = head.k, head.c, head.c.target.vector_bytes
    x = head.part("logits") + row * c.logits_bytes
    with each(k, blocks, [k.splat(MASKED, 16)]) as (i, carried):
        pair = k.load(x + i * (2 * size), 16, 2)
        carried[0] = carried[0].maximum(pair[:1].maximum(pair[1:]))
    top = _splat16(k, reduced(carried[0], "smax"))
    table: list[Any] = list(k.load(head.table, 16, 4).regs) if c.by_words else table_rows(k, head.table)
    total, done = k.splat(0, 32), 0
    if isinstance(blocks, int) and c.whole_blocks and c.whole_blocks < blocks:
        total, done = _exponentials(head, x, table, top, total, 0, c.whole_blocks, c.hides), c.whole_blocks
    hides = c.hides or c.whole_blocks < c.blocks
    total = _exponentials(head, x, table, top, total, done, blocks, hides)
    _row_numbers(head, head.part("numbers") + row * at.ROW_NUMBERS, k.b.zext(reduced(total, "add"), I64))


def _exponentials(head: Head, x: Ptr, table: list[Any], top: Val, total: Val, first: int, blocks: Count, hides: bool) -> Val:
    """Blocks `first` to `blocks` of a row; the total and theirs."""
    k, c, size = head.k, head.c, head.c.target.vector_bytes
    with each(k, blocks, [total], first) as (i, carried):
        pair = k.load(x + i * (2 * size), 16, 2)
        difference = pair.map(lambda v, t: k.intrinsic("ssub.sat", t, v), top)
        if c.by_words:
            e = emit_word_lookup(difference.minimum(difference.splat(255)), Val(k, tuple(table), 16)).sat(8)
            e = e ^ e.splat(-128)
        else:
            e = emit_lookup_in((difference + difference.splat(-128)).sat(8), table)
        if hides:
            e = e.map(lambda r, h: k.b.and_(r, k.b.not_(h)), _are_hidden(pair))
        carried[0] = c.form.total(k, carried[0], e)
        stored = c.form.exponentials(k, e)
        for n, register in enumerate(stored.regs):
            k.store(x + i * (len(stored) * size) + n * size, Val(k, (register,), stored.bits))
    return carried[0]


def _are_hidden(pair: Val) -> Val:
    """8-bit lanes, -1 where logits are hidden."""
    k, hidden = pair.k, pair.splat(MASKED).regs[0]
    return pair.map(lambda v: k.b.sext(k.b.icmp_signed("==", v, hidden), v.type)).sat(8)


def _row_numbers(head: Head, to: Ptr, s: Any) -> None:
    """`numerics.row_multiplier` of the sum s, in 64-bit scalars, and what a result's accumulator starts with: z s and the rounding half.

    Where s is 0, all accumulators are, and any multiplier is right."""
    k, b, i64 = head.k, head.k.b, head.k.i64
    base, exponent, zero = (_number(k, head.numbers + p) for p in (at.VALUE_FACTOR, at.VALUE_SHIFT, at.VALUE_ZERO))
    divisor = b.select(b.icmp_signed(">", s, i64(1)), s, i64(1))
    r = b.udiv(b.shl(base, i64(31)), divisor)
    p = b.sub(i64(64), b.ctlz(r, ir.Constant(ir.IntType(1), 1)))
    q = b.lshr(b.add(r, b.shl(i64(1), b.sub(p, i64(16)))), b.sub(p, i64(15)))
    carried = b.lshr(q, i64(15))
    shift = Index(k, b.sub(b.sub(exponent, p), carried)).minimum(31).ir
    right = b.select(b.icmp_signed(">", shift, i64(0)), shift, i64(0))
    left = b.sub(right, shift)
    half = b.lshr(b.shl(i64(1), right), i64(1))
    _store32(k, to + at.ADDEND, b.add(half, b.mul(zero, s)))
    _store32(k, to + at.RIGHT, right)
    _store32(k, to + at.FACTOR, b.lshr(q, carried))
    _store32(k, to + at.LEFT, b.shl(i64(1), left))


def _number(k: Kernel, p: Ptr) -> Any:
    return k.b.sext(k.b.load(p.ir, align=4, typ=I32), I64)


def _store32(k: Kernel, p: Ptr, value: Any) -> None:
    k.b.store(k.b.trunc(value, I32), p.ir, align=4)


# --- results ---------------------------------------------------------------------------------------------------------


def emit_results(head: Head, n0: Count, blocks: Count) -> None:
    """The results of a tile, by blocks of channels. Whole blocks of channels are a loop, the last one stands for itself."""
    c = head.c
    every = c.channels
    whole = sum(count == 4 and start + c.block <= c.sizes.e for start, count in every)
    step = 4 * c.target.vector_bytes * c.value_groups * c.blocks
    values, y = head.part("values"), head.y + n0 * c.strides[3][1]
    if whole:
        with head.k.loop(whole) as (i, _):
            _results(head, values + i * step, y + i * c.block, 4, c.block, blocks)
    if whole < len(every):
        start, count = every[-1]
        _results(head, values + whole * step, y + start, count, c.sizes.e - start, blocks)


def _results(head: Head, values: Ptr, y: Ptr, count: int, nbytes: int, blocks: Count) -> None:
    """Channels of one block, `nbytes` of them, of all rows."""
    k, c = head.k, head.c
    accs = [head.row_number(r, at.ADDEND).repeat(count) for r in range(c.tile)]
    for r, acc in enumerate(_mixed(head, values, accs, blocks)):
        if c.left_values:
            acc = acc * head.row_number(r, at.LEFT)
        right, q = head.row_number(r, at.RIGHT), head.row_number(r, at.FACTOR, 16)
        result = requantize_biased(acc, None, right, q, head.number(at.OFFSET, 16)).clamp(c.lo, c.hi)
        store_pixels(k, result, [y + r * c.strides[3][1]], count, nbytes, c.spaces[3] is Space.arena)


def _mixed(head: Head, values: Ptr, accs: list[Val], blocks: Count) -> list[Val]:
    """accs + exponentials times values."""
    k, c = head.k, head.c
    e, mac, block_step = head.part("logits"), c.form.mix, c.value_groups * len(accs[0]) * c.target.vector_bytes
    whole = blocks if isinstance(blocks, Index) else c.whole_blocks
    if c.form.bits == 8:
        total = whole * c.value_groups
        accs = linear_products(head, mac, accs, e, c.logits_bytes, values, total)
    elif whole != 0:
        offsets = [c.form.exponential_offset(c.target, g) for g in range(c.value_groups)]
        with each(k, whole, accs) as (i, carried):
            carried[:] = products(head, mac, list(carried), e + i * (2 * c.block), c.logits_bytes, values + i * block_step, offsets)
        accs = list(carried)
    if isinstance(blocks, int) and c.whole_blocks < blocks:
        last = e + c.whole_blocks * c.block * (c.form.bits // 8)
        accs = products(head, mac, accs, last, c.logits_bytes, values + c.whole_blocks * block_step, _last_offsets(c))
    return accs


def _last_offsets(c: AttentionConfig) -> list[int]:
    """Where the groups of the last block lie: key t at byte 16 (t / 4 count) + t % 4 count of its register."""
    size = 4 * c.last_count
    keys = range(0, c.last_keys, c.form.group)
    return [c.form.exponential_offset(c.target, (16 * (t // size) + t % size) // c.form.group) for t in keys]
