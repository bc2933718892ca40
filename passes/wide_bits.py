"""Steps of values of 16 bits, and how many of the bits the accumulators of those who multiply or add them hold.

    acc = sum_k x_k w_k + b        |x| <= 2^(bits-1)        2^(bits-1) sum_k |w_k| + |b| <= 2^30 in every channel

Where that fails at 16 bits, x gets fewer: whatever computes it clamps to them, and its step is coarser from 14 on. Half of the accumulator is left to
the rounding of weights. All of this is known before weights are quantized, so that they are rounded to what they will multiply.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod

import numpy as np

from qcompiler.ir.graph import Declined, Graph, Value
from qcompiler.ir.ops import AveragePool, Conv, Reduce, const_data
from qcompiler.ir.types import Quantization

from .calibrate import Statistics
from .quantize_weights import MAX_ACC
from .scheme import PLAIN, Scheme
from .storage_points import sharing_groups
from .wide_values import readers_of, reads_words, streams

MARGIN = 0.25
"""Of what was seen, for what was not."""
FEWEST, OF_BIASES = 9, 12
"""Bits that are kept in any case, and those kept where a bias is too great: below, the scale of the weights is raised instead."""


def wide_quantization(s: Statistics, scheme: Scheme = PLAIN, bits: int = 16) -> Quantization:
    """Symmetric: what was seen reaches 2^14 with the margin, beyond which `requantize_wide` may saturate, or the end of fewer `bits`."""
    reach = max(-s.min, s.max) * (1 + MARGIN)
    return Quantization.per_tensor(scheme.step(float(np.float32(reach / 2 ** min(bits - 1, 14)))) if reach > 0 else 1.0, 0, bits)


def wide_bits(graph: Graph, wide: frozenset[Value], readers: frozenset[Value], statistics: Mapping[Value, Statistics]) -> dict[Value, int]:
    """The bits of every value of `wide`: 16, or as many as the accumulators of those of `readers` that read its group hold."""
    found = dict.fromkeys(wide, 16)
    for g in sharing_groups(graph, together=streams(graph, wide)):
        here = [u for u in readers_of(graph, g) if u in readers]
        seen = [statistics[v] for v in g if v in statistics]
        if here and seen and g[0] in found:
            found |= dict.fromkeys(g, fitting_bits(here, seen))
    return found


def fitting_bits(readers: Iterable[Value], seen: Iterable[Statistics]) -> int:
    """The most bits, of what was `seen`, for which the accumulators of all `readers` fit."""
    readers, seen = list(readers), list(seen)
    for bits in range(16, FEWEST, -1):
        step = max(wide_quantization(s, bits=bits).scale[0] for s in seen)
        if all(_fits(u, bits, step) for u in readers):
            return bits
    return FEWEST


def report_fewer_bits(graph: Graph, quantization: Mapping[Value, Quantization], declined: Declined) -> None:
    """Tells `declined` of the layers whose operands have between 8 and 16 bits."""
    for u in graph.order:
        x = u.inputs[0] if u.inputs else u
        if reads_words(u) and x in quantization and 8 < quantization[x].bits < 16:
            declined(u, f"it reads '{x.name}' in {quantization[x].bits} bits instead of 16, so that its accumulator fits")


def _fits(u: Value, bits: int, step: float) -> bool:
    if isinstance(u.op, AveragePool):
        return int(prod(u.op.kernel)) << (bits - 1) <= MAX_ACC
    if isinstance(u.op, Reduce):
        return u.inputs[0].type.size // max(u.type.size, 1) << (bits - 1) <= MAX_ACC
    return not isinstance(u.op, Conv) or _conv_fits(u, bits, step)


def _conv_fits(u: Value, bits: int, step: float) -> bool:
    """With weights of 8 bits, S_w = max |w| / 127; fewer bits add up to less."""
    w, b = const_data(u.inputs[1]), const_data(u.inputs[2]) if len(u.inputs) > 2 else None
    if w is None:
        return True
    flat = np.abs(w.astype(np.float64)).reshape(len(w), -1)
    scale = flat.max(1) / 127
    live = scale > 0
    reach = flat.sum(1)[live] / scale[live] * 2.0 ** (bits - 1)
    if b is not None and bits > OF_BIASES:
        reach = reach + np.abs(b.astype(np.float64))[live] / (step * scale[live])
    return bool((reach <= MAX_ACC).all())
