"""RepQuant's dual clipping: both ends of every channel of a normalization, by the error of the layers that read it.

Let e_d be the error of quantizing channel d of a normalization's output x within [lo_d, hi_d] (Li et al. 2024, "RepQuant", section 4.3). Layers
of weights W that read x err by

    E |W e|^2 = sum_dc G_dc E e_d e_c          G = sum over the readers of W^T W

which is lowered channel by channel, first over upper, then over lower ends, the other channels being held: with g_d = sum_(c != d) G_dc e_c

    (lo_d, hi_d) = argmin E (G_dd e_d^2 + 2 e_d g_d)

`reparameterize` then brings what was found to one scale and zero point. At 8 bits ranges as seen are as good, and nothing is searched.
Positions under a window of several pixels are taken to err independently of one another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from qcompiler.frontend.export import export
from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.sequence import Normalize

from .calibrate import session
from .calibrate.statistics import Statistics
from .constants import Floats, floats
from .reparameterize import readers, why_not

Rows = NDArray[np.float32]
Feeds = Mapping[str, NDArray[np.generic]]

ROWS = 64
"""Rows per sample, at most: neighbours say much the same."""
CUTS = np.linspace(0, 0.5, 11)
"""Shares of a channel's range that may be cut off at an end."""


def clip_channels(
    graph: Graph, statistics: Mapping[Value, Statistics], widths: Mapping[Value, int], samples: Sequence[Feeds]
) -> dict[Value, Statistics]:
    """`statistics`, with the channels' ranges clipped of normalizations that are stored in fewer than 8 bits and can be reparameterized."""
    narrow = [v for v in statistics if isinstance(v.op, Normalize) and widths.get(v, 8) < 8 and why_not(graph, v) is None]
    seen = _rows(graph, narrow, samples)
    return {**statistics, **{v: _clipped(statistics[v], x, weight_products(graph, v), widths[v]) for v, x in seen.items()}}


def _rows(graph: Graph, values: Sequence[Value], samples: Sequence[Feeds]) -> dict[Value, Rows]:
    """Some rows [n, D] of each of `values`."""
    if not values or not samples:
        return {}
    exported = export(graph, values)
    runner, names = session(exported), [exported.names[v] for v in values]
    found: dict[Value, list[Rows]] = {v: [] for v in values}
    for feeds in samples:
        for v, x in zip(values, runner.run(names, dict(feeds))):
            rows = np.transpose(x, np.argsort(exported.perms[v])).reshape(-1, v.shape[-1])
            found[v].append(rows[:: -(-len(rows) // ROWS)])
    return {v: np.concatenate(parts) for v, parts in found.items()}


def weight_products(graph: Graph, v: Value) -> Floats:
    """G [D, D] of the dense layers that read normalization `v`."""
    weights = (floats(reader.inputs[1]) for reader, _ in readers(graph, v))
    flat = np.concatenate([w.reshape(-1, w.shape[-1]) for w in weights if w is not None])
    return flat.T @ flat


def _clipped(s: Statistics, x: Rows, g: Floats, bits: int) -> Statistics:
    lo, hi = clipped_ranges(x, s.channel_min, s.channel_max, g, bits)
    return replace(s, channel_min=lo, channel_max=hi)


def clipped_ranges(x: Rows, lo: Floats, hi: Floats, g: Floats, bits: int) -> tuple[Floats, Floats]:
    """Per channel of x [n, D] the range, within [lo, hi], of least error behind weights of products g."""
    lo, hi = lo.copy(), hi.copy()
    products = g.astype(np.float32)
    errors = rounding_errors(x, lo, hi, bits)
    behind = errors @ products
    for d in np.flatnonzero(hi > lo):
        others = behind[:, d] - products[d, d] * errors[:, d]
        cuts, old = CUTS * (hi[d] - lo[d]), errors[:, d].copy()
        hi[d], _ = _least(x[:, d], np.full_like(cuts, lo[d]), hi[d] - cuts, others, products[d, d], bits, 1)
        lo[d], errors[:, d] = _least(
            x[:, d], lo[d] + np.minimum(cuts, (hi[d] - lo[d]) / 2), np.full_like(cuts, hi[d]), others, products[d, d], bits, 0
        )
        behind += np.outer(errors[:, d] - old, products[d])
    return lo, hi


def rounding_errors(x: Rows, lo: Floats, hi: Floats, bits: int) -> Rows:
    """Q(x) - x, evenly spaced levels from lo to hi; what has no range has no error."""
    step = np.where(hi > lo, hi - lo, 1.0).astype(np.float32) / np.float32(2**bits - 1)
    low = lo.astype(np.float32)
    return np.asarray(np.clip(np.rint((x - low) / step), 0, 2**bits - 1) * step + low - x)


def _least(x: Rows, lo: Floats, hi: Floats, others: Rows, weight: float, bits: int, end: int) -> tuple[float, Rows]:
    """Of the candidates' ends, the one of least error, and its errors."""
    errors = rounding_errors(x[:, None], lo, hi, bits)
    best = int(np.argmin(weight * (errors**2).sum(0) + 2 * (others @ errors)))
    return float((lo, hi)[end][best]), errors[:, best]
