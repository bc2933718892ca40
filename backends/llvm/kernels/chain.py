"""The K loop of a tile by chains: groups in the order that `chains` found, several of them added up in 16 bits.

A block's weights begin with a header of 32-bit numbers, how many chains of each form there are and where each group lies in the window,
padded to 64 bytes. Then the weights follow in the order of the chains: [group][register][bytes].
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.backends.llvm import nibbles
from qcompiler.backends.llvm.chains import ChainPlan, Form
from qcompiler.backends.llvm.dot import Chained
from qcompiler.backends.llvm.dsl import Kernel, Ptr, Val

WORD = 4


def group_offsets(runs: Sequence[tuple[int, int]], run: int, group: int) -> NDArray[np.int64]:
    """Bytes from the window's first element to each group of so many bytes, in the order of K."""
    at = np.zeros(1, np.int64)
    for n, step in (*runs, (run, group)):
        at = (at[:, None] + np.arange(n) * step).ravel()
    return at


def header_bytes(forms: int, groups: int) -> int:
    """Size of a block's header."""
    return -(-WORD * (forms + groups) // 64) * 64


def pack_blocks(w: NDArray[np.int8], plan: ChainPlan, offsets: NDArray[np.int64], dot: Chained, packed: bool = False) -> bytes:
    """Weights [blocks, groups, registers, bytes] as the kernel reads them; `packed`: as nibbles."""
    blocks, groups = w.shape[:2]
    header = np.zeros((blocks, header_bytes(len(plan.forms), groups) // WORD), np.int32)
    header[:, : len(plan.forms)] = plan.counts
    header[:, len(plan.forms) : len(plan.forms) + groups] = offsets[plan.order]
    ordered = np.ascontiguousarray(np.take_along_axis(w, plan.order[:, :, None, None], 1))
    registers = nibbles.pack(ordered, dot) if packed else ordered
    return np.concatenate([header.view(np.int8), registers.reshape(blocks, -1)], 1).tobytes()


def accumulate(
    k: Kernel,
    dot: Chained,
    forms: Sequence[Form],
    groups: int,
    pixels: Sequence[int],
    x: Ptr,
    weights: Ptr,
    first: Sequence[Val],
    packed: bool = False,
) -> list[Val]:
    """`first`, the accumulators of the pixels at the offsets `pixels` from x, after all chains; `packed`: weights are nibbles."""
    table = weights + WORD * len(forms)
    state: list[Val | Ptr] = [table, weights + header_bytes(len(forms), groups), *first]
    for n, form in enumerate(forms):
        with k.rounds(k.load_index(weights + WORD * n), state) as inner:
            inner[:] = _chain(k, dot, form, pixels, x, inner, packed)
        state = inner
    return [v for v in state[2:] if isinstance(v, Val)]


def _chain(k: Kernel, dot: Chained, form: Form, pixels: Sequence[int], x: Ptr, state: Sequence[Val | Ptr], packed: bool) -> list[Val | Ptr]:
    """One chain for every pixel and register."""
    table, weights, *accs = state
    assert isinstance(table, Ptr)
    assert isinstance(weights, Ptr)
    places = [x + k.load_index(table + WORD * n) for n in range(form.links)]
    if form.links > 2:
        long, end = _long_chain(k, dot, form, pixels, places, weights, accs, packed)
        return [table + WORD * form.links, end, *long]
    count = len(_registers(accs[0]))
    size = count * k.target.vector_bytes // (2 if packed else 1)
    starts = (weights + n * size for n in range(form.links))
    ws = [(nibbles.load(k, dot, p, count) if packed else k.load(p, 8, count)).regs for p in starts]
    found = list[Val | Ptr]()
    for offset, acc in zip(pixels, accs, strict=True):
        xs = [dot.broadcast(k, p + offset, form.signed) for p in places]
        regs = tuple(dot.chain(k, a, xs, [w[r] for w in ws]) for r, a in enumerate(_registers(acc)))
        found.append(k.settled(Val(k, regs, 32)) if dot.fenced else Val(k, regs, 32))
    return [table + WORD * form.links, weights + form.links * size, *found]


def _long_chain(
    k: Kernel, dot: Chained, form: Form, pixels: Sequence[int], places: Sequence[Ptr], weights: Ptr, accs: Sequence[Val | Ptr], packed: bool
) -> tuple[list[Val], Ptr]:
    """The accumulators and the place after the weights. Group after group for all pixels: sums of 16 bits stay in registers, weights need not.

    They are opaque between groups: LLVM would turn the additions of a chain into a tree, and spill what that keeps alive."""
    count = len(_registers(accs[0]))
    size = count * k.target.vector_bytes // (2 if packed else 1)
    words: list[list[Any]] = [[None] * count for _ in pixels]
    for n, place in enumerate(places):
        here = weights + n * size
        w = (nibbles.load(k, dot, here, count) if packed else k.load(here, 8, count)).regs
        for sums, offset in zip(words, pixels, strict=True):
            x = dot.broadcast(k, place + offset, form.signed)
            added = (reduce(k.b.add, [*([s] if n else []), *dot.products(k, x, r)]) for s, r in zip(sums, w, strict=True))
            sums[:] = k.opaque(Val(k, tuple(added), 16)).regs
    found = [Val(k, tuple(k.b.add(a, dot.widened(k, s)) for a, s in zip(_registers(acc), sums)), 32) for acc, sums in zip(accs, words, strict=True)]
    return found, weights + size * len(places)


def _registers(v: Val | Ptr) -> tuple[Any, ...]:
    assert isinstance(v, Val)
    return v.regs
