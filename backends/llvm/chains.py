"""Chains: several groups of four products are added up in 16 bits before they are widened, where the weights prove that they may be.

A 16-bit lane (a cell) of a group holds the sum of two products. For all activations, a chain's sums stay within 16 bits if in each cell

    signed form, |x| * sign(w, x) or x * w, x in [-128, 127]:    sum |w| <= 255                    255 * 128 < 2^15
    unsigned form, (x + 128) * w:                                sum of positive w <= 128, of negative w >= -128    128 * 255 < 2^15

and so do all partial sums. K may be walked in any order, so groups are paired, heavy with light, for as many legal chains as can be
found; pairs are paired again, up to `dot.links` groups; what finds no partner stays as it is. Each block of channels has its own order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import ProofError

from .dot import Chained

Array = NDArray[np.integer]
INT16_MAX = (1 << 15) - 1
SIGNED_LIMIT, UNSIGNED_LIMIT = 255, 128
ROUNDS = 24
"""Attempts to find partners for those that are left."""
LINKS = (8, 4, 2, 1)
WORTHWHILE = 0.25
"""The part of all groups from which on chains of four and eight get code of their own."""


@dataclass(frozen=True)
class Form:
    """How a chain is computed: `links` groups at once, of x or of x + 128."""

    signed: bool
    links: int


@dataclass(frozen=True, eq=False)
class ChainPlan:
    """For each block: how many chains of each form, and its groups in the order of the chains."""

    forms: tuple[Form, ...]
    counts: NDArray[np.int64]
    """[blocks, forms]"""
    order: NDArray[np.int64]
    """[blocks, groups]"""

    def unsigned(self) -> NDArray[np.bool_]:
        """[blocks, groups]: which groups, in K's own order, are multiplied by x + 128."""
        signed = np.array([f.signed for f in self.forms])
        links = np.array([f.links for f in self.forms])
        found = np.zeros(self.order.shape, bool)
        for b, counts in enumerate(self.counts):
            found[b, self.order[b]] = ~np.repeat(signed, counts * links)
        return found

    def chains(self, block: int) -> list[NDArray[np.int64]]:
        """Of each form, the groups of its chains [n, links]."""
        ends = np.cumsum(self.counts[block] * [f.links for f in self.forms])
        return [part.reshape(-1, f.links) for part, f in zip(np.split(self.order[block], ends[:-1]), self.forms)]

    def of_forms(self, forms: tuple[Form, ...]) -> ChainPlan:
        """The same, with a count for each of `forms`."""
        counts = np.stack([self.counts[:, self.forms.index(f)] if f in self.forms else np.zeros(len(self.counts), np.int64) for f in forms], 1)
        return ChainPlan(forms, counts, self.order)


def plan_chains(w: Array, dot: Chained) -> ChainPlan:
    """Chains for `w` [blocks, lanes, groups, group]."""
    forms = tuple(Form(signed, links) for signed in ((False, True) if dot.unsigned else (True,)) for links in LINKS if links <= dot.links)
    blocks = _without_rare([_plan_block(block, dot) for block in w])
    counts = np.array([[len(chains) for chains in found] for found in blocks]).reshape(len(w), -1)
    order = np.array([np.concatenate([c.ravel() for c in found]) for found in blocks]).reshape(len(w), -1)
    used = np.asarray(counts.any(0))
    return ChainPlan(tuple(f for f, u in zip(forms, used.tolist()) if u), counts[:, used], order)


def _without_rare(blocks: list[list[NDArray[np.int64]]]) -> list[list[NDArray[np.int64]]]:
    """Chains [n, links] of each form, by block; those of lengths that few groups are in are cut into halves."""
    found, groups = [list(b) for b in blocks], sum(c.size for b in blocks for c in b)
    for n in range(len(found[0]) if found else 0):
        chains = [b[n] for b in found]
        links = chains[0].shape[1]
        if links > 2 and sum(c.size for c in chains) < WORTHWHILE * groups:
            for b, c in zip(found, chains):
                b[n], b[n + 1] = c[:0], _sorted(np.concatenate([c.reshape(-1, links // 2), b[n + 1]]))
    return found


def _plan_block(w: Array, dot: Chained) -> list[NDArray[np.int64]]:
    """Chains [n, links] of each form."""
    groups = np.arange(w.shape[1])
    if not dot.unsigned:
        return _joined(loads(w, dot, signed=True), groups, SIGNED_LIMIT, dot.links)
    halves = loads(w, dot, signed=False)
    alone = halves.max(1) <= UNSIGNED_LIMIT
    return [
        *_joined(halves[alone], groups[alone], UNSIGNED_LIMIT, dot.links),
        *_joined(loads(w, dot, signed=True)[~alone], groups[~alone], SIGNED_LIMIT, dot.links),
    ]


def prove(w: Array, plan: ChainPlan, dot: Chained) -> int:
    """The greatest magnitude of a 16-bit sum in any chain of `w` [blocks, lanes, groups, group], whatever x is. ProofError above 2^15 - 1."""
    greatest = max((_greatest(w[b], f, chains, dot) for b in range(len(w)) for f, chains in zip(plan.forms, plan.chains(b))), default=0)
    if greatest > INT16_MAX:
        raise ProofError(f"a chain of products may reach {greatest}, which does not fit in 16 bits")
    return greatest


def _greatest(w: Array, form: Form, chains: NDArray[np.int64], dot: Chained) -> int:
    sums = loads(w, dot, form.signed)[chains].sum(1, dtype=np.int64)
    return int(sums.max(initial=0)) * (128 if form.signed else 255)


def all_unsigned(w: Array, dot: Chained) -> bool:
    """Whether every single group of `w` [lanes, groups, group] may be multiplied by x + 128."""
    return dot.unsigned and bool(loads(w, dot, signed=False).max(initial=0) <= UNSIGNED_LIMIT)


def loads(w: Array, dot: Chained, signed: bool) -> Array:
    """[groups, sums]: what each group of `w` [lanes, groups, group] adds to the sums that have a limit."""
    parts = (np.abs(w.astype(np.int16)),) if signed else (np.maximum(w, 0).astype(np.int16), np.maximum(-w.astype(np.int16), 0))
    cells = [part[..., list(cell)].sum(-1, dtype=np.int16) for part in parts for cell in dot.cells]
    return np.ascontiguousarray(np.concatenate(cells).T)


def _joined(load: Array, groups: NDArray[np.int64], limit: int, most: int) -> list[NDArray[np.int64]]:
    """Chains [n, links] of `groups`, for each of `LINKS` up to `most`, in ascending order."""
    chains, found = groups[:, None], list[NDArray[np.int64]]()
    while chains.shape[1] < most:
        first, second, left = _partners(load, limit)
        found.append(_sorted(chains[left]))
        chains, load = np.concatenate([chains[first], chains[second]], 1), load[first] + load[second]
    return [_sorted(chains), *found[::-1]]


def _sorted(chains: NDArray[np.int64]) -> NDArray[np.int64]:
    inside = np.sort(chains, axis=1)
    return inside[np.argsort(inside[:, 0])]


def _partners(load: Array, limit: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(first, second) of pairs whose loads together are within the limit, and those that are left."""
    left = np.argsort(-load.max(1), kind="stable") if len(load) else np.zeros(0, np.int64)
    found = [np.zeros((0, 2), np.int64)]
    for turn in range(ROUNDS):
        half = len(left) // 2
        if half == 0:
            break
        heavy, light = left[:half], np.roll(left[::-1][:half], turn)
        legal = (load[heavy] + load[light]).max(1) <= limit
        found.append(np.stack([heavy[legal], light[legal]], 1))
        left = left[~np.isin(left, found[-1])]
    pairs = np.concatenate(found)
    return pairs[:, 0], pairs[:, 1], left
