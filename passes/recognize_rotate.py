"""y[n,i] = x[n,i] cos[n,i] + x[n,partner_i] sin[n,i]: rotary embedding, however it is spelled (Su et al. 2021, "RoFormer", section 3.4.2).

Exporters write rotate_half with Slice, Neg and Concat, neighbours with strided slices and a stack, complex products of halves,
rotations of the first channels alone. So a region of products with constants, sums and data movement is run on unit vectors,
which says what each channel is made of, and then on random numbers, which says whether that was all.

x is [B,H,N,D], as products of queries and keys want it, or [B,N,H,D]; `Rotate` reads the latter, so the former gets transpositions around.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qcompiler.ir.graph import Declined, Graph, Value, apply
from qcompiler.ir.ops import Concat, Const, Gather, Reshape, Slice, Transpose, constant
from qcompiler.ir.pointwise import Add, Mul, Neg, Sub
from qcompiler.ir.sequence import Rotate
from qcompiler.ir.types import DType

from .constants import uniform
from .regions import Floats, Make, Region, all_roots, between, outermost, replace_regions

LONGEST = 40
"""Values of the longest spelling."""

TOLERANCE = 1e-6

SWAP = (0, 2, 1, 3)
"""[B,H,N,D] to [B,N,H,D] and back."""


def recognize_rotate(graph: Graph, declined: Declined | None = None) -> Graph:
    """Replace every region that rotates channels by constant angles by a `Rotate`."""
    if not any(isinstance(v.op, Mul) and isinstance(v.inputs[-1].op, Const) and uniform(v.inputs[-1]) is None for v in graph.order):
        return graph
    roots = all_roots(graph, _is_inside)
    return replace_regions(graph, outermost(graph, lambda v: _match(v, roots[v])))


def _is_inside(v: Value) -> bool:
    """Linear: data movement, negation, sums of variables, products with constants."""
    match v.op:
        case Slice() | Reshape() | Concat() | Transpose() | Neg():
            return v.type.dtype is DType.f32
        case Add() | Sub() | Concat():
            return not any(isinstance(i.op, Const) for i in v.inputs)
        case Mul():
            return sum(isinstance(i.op, Const) for i in v.inputs) == 1
        case Gather():
            return isinstance(v.inputs[1].op, Const)
    return False


def _match(v: Value, roots: tuple[Value, ...]) -> tuple[Region, Make] | None:
    """The greatest region that ends in `v` and rotates."""
    if not isinstance(v.op, (Add, Sub, Concat, Reshape)) or len(v.shape) != 4 or v.type.dtype is not DType.f32:
        return None
    for root in reversed(roots):
        if root.type.size == v.type.size:
            region = between(root, v)
            if _is_promising(region) and (rotation := _rotation(region)) is not None:
                return region, _maker(rotation, v)
    return None


def _is_promising(region: Region) -> bool:
    kinds = [type(v.op) for v in region.values]
    return len(kinds) <= LONGEST and kinds.count(Mul) >= 2 and (Add in kinds or Sub in kinds) and kinds[-1] is not Transpose


@dataclass(frozen=True)
class Rotation:
    """cos and sin [N,D] and the partner of each channel; `positions` is the axis of N: 1 or 2."""

    positions: int
    cos: Floats
    sin: Floats
    partners: NDArray[np.int64]


def _rotation(region: Region) -> Rotation | None:
    """What the region rotates by, if it does and that is all it does."""
    for positions in (2, 1):
        coefficients = _coefficients(region, positions)
        rotation = None if coefficients is None else _taken_apart(coefficients, positions)
        if rotation is not None and _holds(region, rotation):
            return rotation
    return None


def _coefficients(region: Region, positions: int) -> Floats | None:
    """[N, D, D]: the weight of channel j (first) in channel i (last) of position n, as if heads did not matter.

    Each batch entry and head is given another unit vector, so that one run shows B * H of them.
    """
    b, h, n, d = _by_heads(_shape(region), positions)
    units = np.zeros((-(-d // (b * h)), b * h, n, d))
    for j in range(d):
        units[j // (b * h), j % (b * h), :, j] = 1.0
    rows = []
    for x in units:
        y = _run(region, _from_heads(x.reshape(b, h, n, d), positions))
        if not np.isfinite(y).all():
            return None
        rows.append(_from_heads(y, positions).reshape(b * h, n, d))
    return np.concatenate(rows)[:d].transpose(1, 0, 2)


def _shape(region: Region) -> tuple[int, ...]:
    return region.values[-1].shape


def _run(region: Region, x: Floats) -> Floats:
    """The region's result for `x` of the shape of that result: its root may have its axes together."""
    return region.run(x.reshape(region.root.shape))


def _by_heads(shape: tuple[int, ...], positions: int) -> tuple[int, ...]:
    return shape if positions == 2 else tuple(shape[i] for i in SWAP)


def _from_heads(x: Floats, positions: int) -> Floats:
    return x if positions == 2 else x.transpose(SWAP)


def _taken_apart(coefficients: Floats, positions: int) -> Rotation | None:
    """Each channel is made of itself and of at most one other, the same at every position; some channel of another indeed."""
    channels = np.arange(coefficients.shape[2])
    cos = coefficients[:, channels, channels]
    others = np.abs(coefficients).max(0)
    others[channels, channels] = 0
    if (np.count_nonzero(others, axis=0) > 1).any() or not others.any():
        return None
    partners = np.where(others.any(0), others.argmax(0), channels)
    sin = np.where(partners == channels, 0.0, coefficients[:, partners, channels])
    return Rotation(positions, cos, sin, partners)


def _holds(region: Region, r: Rotation) -> bool:
    """Whether random numbers are rotated so, by every head alike."""
    x = np.random.default_rng(0).standard_normal(_shape(region))
    heads = _from_heads(x, r.positions)
    expected = heads * r.cos + heads[..., r.partners] * r.sin
    error = np.abs(_from_heads(_run(region, x), r.positions) - expected).max()
    return bool(error <= TOLERANCE * np.abs(expected).max())


def _maker(r: Rotation, v: Value) -> Make:
    cos, sin = (constant(a.astype(np.float32), f"{v.name}.{n}") for a, n in ((r.cos, "cos"), (r.sin, "sin")))
    op = Rotate(tuple(int(i) for i in r.partners))

    def rotated(x: Value) -> Value:
        x = x if x.shape == v.shape else apply(Reshape(v.shape), x, name=f"{x.name}.split")
        if r.positions == 1:
            return apply(op, x, cos, sin, name=v.name)
        y = apply(op, apply(Transpose(SWAP), x, name=f"{x.name}.positions"), cos, sin, name=v.name)
        return apply(Transpose(SWAP), y, name=f"{v.name}.heads")

    return rotated
