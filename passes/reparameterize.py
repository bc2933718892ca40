"""RepQuant's scale reparameterization of normalizations: per channel while quantizing, per tensor while running.

Let x_d = gamma_d n_d + beta_d be what a normalization leaves in channel d, quantized with a scale s_d and an integer zero point z_d of
its own. With one S and one integer Z for all channels, r_d = s_d / S and k_d = z_d - Z (Li et al. 2023, "RepQ-ViT", section 3.2;
Li et al. 2024, "RepQuant", section 4.2):

    gamma'_d = gamma_d / r_d                  beta'_d = (beta_d + s_d k_d) / r_d
    W'[:, d] = r_d W[:, d]                    b' = b - sum_d s_d k_d W[:, d]         for every layer that reads the normalization

Ranges need not hold zero, which only padding would ask for: a channel far from it is shifted to the middle.
Then x'_d / S + Z = x_d / s_d + z_d: the same integers, and the layers' results are unchanged. There Z is a mean of zero points and
hence fractional; any integer will do, since k_d is taken exactly. In an integer program gamma' / S and beta' / S + Z are constants of the
normalization's own last step, so this costs nothing at run time.

r spreads the columns of W', which is quantized with one scale per row: a strength below 1 takes r to that power and trades error of
activations for error of weights, as SmoothQuant does (Xiao et al. 2023, section 4); weights are quantized afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from qcompiler.ir.graph import Declined, Graph, Value
from qcompiler.ir.ops import Reshape
from qcompiler.ir.sequence import Normalize

from .calibrate.statistics import Statistics
from .constants import Floats, floats, is_dense, same_dtype, with_constants

LEVELS = 255
NOT_REPARAMETERIZED = "is not reparameterized"
BOUND = 32.0
"""r stays within 1 / BOUND and BOUND."""


@dataclass(frozen=True)
class Reparameterization:
    """x'_d = (x_d + shift_d) / r_d."""

    r: Floats
    shift: Floats


def reparameterize(graph: Graph, statistics: Mapping[Value, Statistics], declined: Declined | None = None, strength: float = 1.0) -> Graph:
    """The same function, with the outputs of normalizations in ranges that are alike in all channels. `statistics` of stored values."""
    reasons = declined if declined is not None else Declined()
    found: dict[Value, Reparameterization] = {}
    for v in graph.order:
        if isinstance(v.op, Normalize) and v in statistics:
            if (why := why_not(graph, v)) is not None:
                reasons(v, f"{NOT_REPARAMETERIZED}: {why}")
            else:
                found[v] = from_ranges(statistics[v], strength)
    return applied(graph, found) if found else graph


def why_not(graph: Graph, v: Value) -> str | None:
    """Why the readers of normalization `v` cannot absorb a change of its channels, or None."""
    if v in graph.outputs:
        return "it is an output of the network"
    if any(floats(p) is None for p in v.inputs[1:]):
        return "its parameters are computed at run time"
    for reader, through in readers(graph, v):
        if not is_dense(reader) or reader.inputs[0] is not through:
            return f"its reader {type(reader.op).__name__} '{reader.name}' is no dense layer"
    return None


def readers(graph: Graph, v: Value) -> list[tuple[Value, Value]]:
    """(reader, what it reads) for all that read `v`, also through reshapes that keep channels."""
    found = list[tuple[Value, Value]]()
    pending = [v]
    while pending:
        x = pending.pop()
        for u in graph.uses[x]:
            if isinstance(u.op, Reshape) and u.shape[-1:] == v.shape[-1:] and u not in graph.outputs:
                pending.append(u)
            else:
                found.append((u, x))
    return found


def from_ranges(s: Statistics, strength: float) -> Reparameterization:
    """r and s_d k_d of all channels from their ranges."""
    lo, hi = s.channel_min, s.channel_max
    width = np.where(hi > lo, hi - lo, 1.0) / LEVELS
    common = float(np.exp(np.log(width).mean()))
    r = np.clip((width / common) ** strength, 1 / BOUND, BOUND)
    step = common * r
    zero = np.rint(-0.5 - (lo + hi) / (2 * step))  # the middle of the range becomes the middle of int8
    return Reparameterization(r, step * (zero - np.rint(zero.mean())))


def applied(graph: Graph, found: Mapping[Value, Reparameterization]) -> Graph:
    """The graph with the parameters of normalizations and of the layers that read them changed."""
    change: dict[Value, tuple[Value, ...]] = {}
    for v, p in found.items():
        gamma, beta = (floats(c) for c in v.inputs[1:])
        assert gamma is not None
        assert beta is not None
        change[v] = _constants(v, (gamma / p.r, (beta + p.shift) / p.r))
        for reader, _ in readers(graph, v):
            change[reader] = _absorbed(reader, p)
    return with_constants(graph, change)


def _constants(v: Value, arrays: tuple[Floats, ...]) -> tuple[Value, ...]:
    return tuple(same_dtype(a, old, old.name) for a, old in zip(arrays, v.inputs[1:]))


def _absorbed(reader: Value, p: Reparameterization) -> tuple[Value, ...]:
    """Weights [O,1,1,D] and bias of a layer that reads x' instead of x."""
    w, *rest = (floats(c) for c in reader.inputs[1:])
    assert w is not None
    bias = rest[0] if rest and rest[0] is not None else np.zeros(w.shape[0])
    changed = w * p.r, bias - (w * p.shift).reshape(w.shape[0], w.shape[1] * w.shape[2], -1).sum((1, 2))
    names = reader.inputs[1], reader.inputs[2] if len(reader.inputs) > 2 else None
    made = [same_dtype(changed[0], names[0], names[0].name)]
    made.append(same_dtype(changed[1], names[1] or names[0], f"{reader.name}.bias" if names[1] is None else names[1].name))
    return tuple(made)
