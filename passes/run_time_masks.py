"""where(m, a, hidden) with m computed from one integer or boolean tensor: attention masks, however they are spelled.

    (1 - cast(m)) * -10^4        where(cast(m), 0, -inf)        and(m, causal)        (1 - causal * cast(m)) * -10^9

Each element of such an expression depends on one element of its source, so it is run on zeros and on ones: it is a mask if
one of the two hides everything, and what the other says is constant. Where any other number says something else, as in the first
form, the mask is `binary`: the program refuses what is neither 0 nor 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from qcompiler.ir.graph import Value, apply
from qcompiler.ir.interpret import compute
from qcompiler.ir.ops import Cast, Const, Expand, Reshape, Where
from qcompiler.ir.pointwise import Binary, Comparison, Not, Unary
from qcompiler.ir.types import DType

from .axes import reshape_groups
from .regions import Region, between, tensors

Array = NDArray[np.generic]

PASSING = (Unary, Binary, Where, Cast, Reshape, Expand)
LARGEST = 1 << 26
"""Elements of the largest mask that is tried."""


def run_time_mask(t: Value, hides: Callable[[Array], NDArray[np.bool_]]) -> tuple[Value, Array] | None:
    """A boolean that broadcasts to `t`, and what `t` is where that holds; where not, `t` hides. None if that is not what `t` says."""
    leaves = dict.fromkeys(_leaves(t))
    source = next(iter(leaves), None)
    if source is None or len(leaves) > 1 or source.type.dtype.is_float or t.type.size > LARGEST:
        return None
    region = between(source, t)
    zero, one = (_run(region, n) for n in (0, 1))
    alike = source.type.dtype is DType.bool or all(np.array_equal(_run(region, n), one) for n in _others(source.type.dtype))
    if not alike and any(isinstance(v.op, Comparison) for v in region.values):
        return None
    for shown, hidden, negated in ((one, zero, False), (zero, one, True)):
        if hides(hidden).all() and not hides(shown).all():
            mask = _mask(t, source, negated, not alike)
            return None if mask is None else (mask, _shrunk(shown))
    return None


def _leaves(t: Value) -> Iterator[Value]:
    """What `t` is computed from, element by element."""
    seen, pending = set[Value](), [t]
    while pending:
        v = pending.pop()
        if v in seen or isinstance(v.op, Const):
            continue
        seen.add(v)
        if isinstance(v.op, PASSING):
            pending.extend(v.inputs)
        else:
            yield v


def _others(dtype: DType) -> tuple[int, ...]:
    return (2, 3, 101) if dtype.name.startswith("u") else (2, 3, 101, -1)


def _run(region: Region, number: int) -> Array:
    """The region's result where its source is `number` everywhere."""
    root = region.root
    env = {root: np.full(root.shape, number, root.type.dtype.numpy)}
    with np.errstate(all="ignore"):
        for v in region.values:
            env[v] = np.asarray(compute(v, [i.op.data if isinstance(i.op, Const) else env[i] for i in v.inputs]))
    return env[region.values[-1]] if region.values else env[root]


def _shrunk(x: Array) -> Array:
    """`x` without repetition along its axes."""
    for axis in range(x.ndim):
        first = x.take([0], axis)
        x = first if np.array_equal(np.broadcast_to(first, x.shape), x) else x
    return x


def _mask(t: Value, source: Value, negated: bool, binary: bool) -> Value | None:
    """`source` as a boolean, reshaped so that it broadcasts to `t`."""
    mask = source if source.type.dtype is DType.bool else apply(Cast(DType.bool, binary), source, name=f"{source.name}.seen")
    mask = apply(Not(), mask, name=f"{mask.name}.not") if negated else mask
    shape = source.shape
    for v in _path(t, source):
        moved = _followed(mask, shape, v)
        if moved is None:
            return None
        mask, shape = moved, v.shape
    return mask


def _path(t: Value, source: Value) -> list[Value]:
    """Some way from `source` (without it) to `t`."""
    path = list[Value]()
    while t is not source:
        path.append(t)
        t = max(tensors(t), key=lambda i: source in between_values(i))
    return path[::-1]


def between_values(v: Value) -> set[Value]:
    """`v` and all that it is computed from, element by element."""
    found, pending = set[Value](), [v]
    while pending:
        u = pending.pop()
        if u not in found:
            found.add(u)
            pending.extend(u.inputs if isinstance(u.op, PASSING) else ())
    return found


def _followed(mask: Value, before: tuple[int, ...], v: Value) -> Value | None:
    """`mask`, which broadcasts to a tensor of shape `before`, so that it broadcasts to what `v` makes of that."""
    if not isinstance(v.op, Reshape):
        target = (1,) * (len(v.shape) - len(mask.shape)) + mask.shape
    else:
        full, result = (1,) * (len(before) - len(mask.shape)) + mask.shape, [1] * len(v.shape)
        for a, b in reshape_groups(before, v.shape):
            if any(full[i] != 1 for i in a):
                if any(full[i] != before[i] for i in a):
                    return None
                for i in b:
                    result[i] = v.shape[i]
        target = tuple(result)
    if mask.shape == target:
        return mask
    inner = mask.inputs[0] if isinstance(mask.op, Reshape) else mask
    return replace(apply(Reshape(target), inner, name=f"{inner.name}.r"))
