"""Product of two activations, vectorized over the columns of the second.

    acc[m, n] = sum_k (a - z_a)[m, k] (b - z_b)[k, n]      two k at a time: pairs of 16-bit lanes (pmaddwd)

`rows` rows of a are done at once, so that each register of b is widened once for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from qcompiler.backends.llvm.dsl import Index, Kernel, Ptr, Val
from qcompiler.backends.llvm.epilogue import Epilogue, Sources, describe
from qcompiler.backends.llvm.launch import Data, Launch
from qcompiler.backends.llvm.products import weighted_pair
from qcompiler.backends.llvm.target import Target
from qcompiler.passes.layouts import Space
from qcompiler.passes.plan_memory import Run

from .elementwise import epilogue_arguments, for_constants
from .rows import Strides, load_row, merged, operands, result_of, store_row, walk


@dataclass(frozen=True)
class MatMulConfig:
    """Batch axes with the strides of a, b and y; `a`, `b`, `y` are the row strides, `steps` the strides along k of a and b."""

    batch: tuple[int, ...]
    strides: tuple[Strides, Strides, Strides]
    m: int
    k: int
    n: int
    a: int
    b: int
    y: int
    spaces: tuple[Space, Space, Space]
    epilogue: Epilogue

    @property
    def rows(self) -> int:
        """Rows of a done at once."""
        return min(self.m, 2)


def plan_matmul(run: Run, target: Target) -> Iterable[Launch]:
    """`IntMatMul` and its epilogue."""
    (a, b), y = operands(run), result_of(run)
    epilogue, data = describe(run.step.epilogue, 0, run.step.producer)
    strides = [x.broadcast_strides((*y.shape[:-2], *x.shape[-2:])) for x in (a, b, y)]
    batch, outer = merged(y.shape[:-2], [s[:-2] for s in strides])
    config = MatMulConfig(
        batch,
        (outer[0], outer[1], outer[2]),
        y.shape[-2],
        a.shape[-1],
        y.shape[-1],
        a.layout.strides[-2],
        b.layout.strides[-2],
        y.layout.strides[-2],
        (a.space, b.space, y.space),
        epilogue,
    )
    numbers = Data(np.array([-a.zero_point, -b.zero_point], np.int16).tobytes())
    arguments = (a.argument, b.argument, y.argument, numbers, *epilogue_arguments(data, epilogue, target, y.shape[-1]))
    yield Launch(emit_matmul, config, ("a", "b", "y", "numbers", "constants", "tables"), arguments, run.step.result.name)


def emit_matmul(k: Kernel, c: MatMulConfig) -> None:
    """The body of a function of ("a", "b", "y", "numbers", "constants", "tables")."""
    a, b, y, numbers, constants, tables = k.parameters
    zeros = [k.broadcast(numbers, 16), k.broadcast(numbers + 2, 16)]
    with walk(k, c.batch, c.strides, [a, b, y]) as ((a, b, y), _), k.split(-(-c.m // c.rows)) as i:
        first = i * c.rows
        row = first.minimum(c.m - c.rows) if isinstance(first, Index) else first
        rows = [a + row * c.a + r * c.a for r in range(c.rows)]

        def body(start: Index | int, nbytes: int, block: Ptr) -> None:
            accs = _products(k, c, rows, b + start, nbytes, zeros, [c.epilogue.initial(k, block, 4)] * c.rows)
            for r, acc in enumerate(accs):
                result = c.epilogue.apply(k, acc, block, 4, Sources(tables=tables))
                store_row(k, y + row * c.y + r * c.y + start * c.epilogue.itemsize, result, nbytes, c.spaces[2])

        for_constants(k, c.n, c.epilogue, constants, body)


def _products(k: Kernel, c: MatMulConfig, rows: Sequence[Ptr], b: Ptr, nbytes: int, zeros: Sequence[Val], accs: list[Val]) -> list[Val]:
    """Accumulators of all rows after all k."""

    def weight(p: Ptr) -> Val:
        return load_row(k, p, 1, c.spaces[0], 0).sext(16)[:1] + zeros[0]

    def column(p: Ptr) -> Val:
        return load_row(k, p, nbytes, c.spaces[1]).sext(16) + zeros[1]

    def step(i: Index | int, accs: Sequence[Val]) -> list[Val]:
        at = b + i * (2 * c.b)
        x0, x1 = column(at), column(at + c.b)
        pairs = ((weight(row + i * 2), weight(row + i * 2 + 1)) for row in rows)
        return [weighted_pair(x0, w0, x1, w1) + acc for acc, (w0, w1) in zip(accs, pairs)]

    if c.k > 1:
        with k.loop(c.k // 2, accs) as (i, carried):
            carried[:] = step(i, carried)
        accs = carried
    if c.k % 2:
        x = column(b + (c.k - 1) * c.b).sext(32)
        accs = [x * weight(row + (c.k - 1)).sext(32)[:1] + acc for acc, row in zip(accs, rows)]
    return accs
