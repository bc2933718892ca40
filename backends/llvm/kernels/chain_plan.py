"""From a convolution's weights to its chains: the forms in use, the packed blocks, and what the unsigned form adds to the sums."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qcompiler.backends.llvm.chains import LINKS, UNSIGNED_LIMIT, ChainPlan, Form, plan_chains, prove
from qcompiler.backends.llvm.dot import Chained, Dot
from qcompiler.backends.llvm.order import wide_order
from qcompiler.backends.llvm.target import Target

from .chain import group_offsets, pack_blocks
from .conv import ConvConfig, pack_registers, segment_weights

Key = tuple[int, int]
"""(group of the convolution, segment)."""


@dataclass(frozen=True, eq=False)
class ChainedWeights:
    """A configuration whose segments know their forms, its packed weights, and per output channel the sum of weights that meet x + 128."""

    config: ConvConfig
    packed: bytes
    unsigned_sums: NDArray[np.int64]


def expected_dot(w: NDArray[np.int8], dot: Dot) -> Dot:
    """`dot` with the costs that its chains will have, for the choice of tiles. In chains of eight, sums of 16 bits stay in registers instead of the
    accumulators; a sum of two products is about as large as one weight is on average."""
    if not isinstance(dot, Chained):
        return dot
    if not dot.unsigned:
        return replace(dot, steps=2.6, multiplies=2.6)
    sizes = np.abs(w.astype(np.int16))
    if sizes.max(initial=0) > UNSIGNED_LIMIT // 2:
        return replace(dot, steps=3.4, multiplies=1.8, prepare=1.5, scratch=6)
    if LINKS[0] * sizes.mean() <= UNSIGNED_LIMIT / 2:
        return replace(dot, steps=2.25, multiplies=1.125, prepare=0, scratch=3)
    return replace(dot, steps=2.6, multiplies=1.5, prepare=0, scratch=6)


def chained(w: NDArray[np.int8], config: ConvConfig, target: Target) -> ChainedWeights:
    """The chains of `w` [O, number of runs, elements of a run]."""
    dot = config.dot
    assert isinstance(dot, Chained)
    blocks = dict(segment_weights(w, config, target))
    plans = {key: plan_chains(_lanes_first(b), dot) for key, b in blocks.items()}
    for key, b in blocks.items():
        prove(_lanes_first(b), plans[key], dot)
    segments = tuple(replace(s, forms=_common([p for (_, n), p in plans.items() if n == i])) for i, s in enumerate(config.segments))
    offsets = group_offsets(config.runs, config.run, dot.group)
    registers = ((key, pack_registers(b, dot)) for key, b in blocks.items())
    packed = b"".join(pack_blocks(r, plans[key].of_forms(segments[key[1]].forms), offsets, dot, config.nibbles) for key, r in registers)
    sums = np.concatenate([s[: config.channels] for s in _sums_per_group(blocks, plans, config, target)])
    return ChainedWeights(replace(config, segments=segments), packed, sums)


def _lanes_first(w: NDArray[np.int8]) -> NDArray[np.int8]:
    """[blocks, groups, registers, lanes, group] to [blocks, lanes, groups, group]."""
    return w.reshape(*w.shape[:2], -1, w.shape[-1]).swapaxes(1, 2)


def _common(plans: Sequence[ChainPlan]) -> tuple[Form, ...]:
    """The forms that any of the plans uses."""
    used = {f for p in plans for f in p.forms}
    return tuple(sorted(used, key=lambda f: (f.signed, -f.links)))


def _sums_per_group(
    blocks: dict[Key, NDArray[np.int8]], plans: dict[Key, ChainPlan], config: ConvConfig, target: Target
) -> Iterator[NDArray[np.int64]]:
    """Per group of the convolution, for its channels in order: the sum of weights in the unsigned form."""
    for g in range(config.groups):
        parts = list[NDArray[np.int64]]()
        for i, s in enumerate(config.segments):
            w, unsigned = blocks[g, i], plans[g, i].unsigned()
            lanes = (w.astype(np.int64).sum(-1) * unsigned[:, :, None, None]).sum(1).reshape(len(w), -1)
            found = np.empty_like(lanes)
            found[:, wide_order(target, 32, s.count)] = lanes
            parts.append(found.ravel())
        yield np.concatenate(parts)
