"""Random integer graphs for property tests: convolutions, sums, movement and pooling on random earlier values."""

from __future__ import annotations

from hypothesis import strategies as st
from integer_graphs import Builder

from qcompiler.ir.graph import Value
from qcompiler.ir.ops import Reduction

SAME = ((1, 1), (1, 1))
LARGEST = 4000


@st.composite
def random_graphs(draw: st.DrawFn) -> tuple[Builder, list[Value]]:
    """A builder that holds a graph of up to ten operators, and the outputs to take."""
    growth = _Growth(draw, draw(st.integers(0, 2**32 - 1)))
    for _ in range(draw(st.integers(1, 10))):
        growth.grow()
    outputs = draw(st.lists(st.sampled_from(growth.values[2:] or growth.values), min_size=1, max_size=3))
    return growth.b, [growth.values[-1], *outputs]


class _Growth:
    """Grows a graph by random operators on random earlier values, all of four axes."""

    def __init__(self, draw: st.DrawFn, seed: int) -> None:
        self.draw, self.b = draw, Builder(seed)
        self.values = [self.b.input(1, 4, 6, 4, zero_point=0), self.b.transpose(self.b.input(1, 3, 4, 6, zero_point=0), 0, 2, 3, 1)]

    def pick(self, fits=lambda v: True) -> Value:
        return self.draw(st.sampled_from([v for v in self.values if fits(v)]))

    def grow(self) -> None:
        kind = self.draw(st.sampled_from([n for n in dir(self) if n.startswith("op_")]))
        v = getattr(self, kind)(self.pick())
        if v.type.size <= LARGEST:
            self.values.append(v)

    def op_conv(self, x):
        kernel = tuple(self.draw(st.sampled_from([1, 3])) for _ in range(2))
        pads = tuple((k // 2, k // 2) for k in kernel)
        return self.b.conv(x, self.draw(st.integers(1, 9)), kernel, pads=pads, zero_point=0)

    def op_depthwise(self, x):
        return self.b.depthwise(x, pads=SAME, zero_point=0)

    def op_residual(self, x):
        return self.b.clamp(self.b.add(self.b.conv(x, x.shape[3], zero_point=0), x, zero_point=0))

    def op_add(self, x):
        return self.b.add(x, self.pick(lambda v: v.shape == x.shape), zero_point=0)

    def op_concat(self, x):
        axis = self.draw(st.integers(1, 3))
        return self.b.concat(axis, x, self.pick(lambda v: v.shape[:axis] + v.shape[axis + 1 :] == x.shape[:axis] + x.shape[axis + 1 :]))

    def op_slice(self, x):
        bounds = [sorted(self.draw(st.lists(st.integers(0, d), min_size=2, max_size=2, unique=True))) for d in x.shape]
        steps = [self.draw(st.sampled_from([1, 1, 2])) for _ in x.shape]
        return self.b.slice(x, *((lo, hi, k) for (lo, hi), k in zip(bounds, steps)))

    def op_reverse(self, x):
        return self.b.slice(x, (0, 1, 1), *((d - 1, -1, -1) for d in x.shape[1:]))

    def op_channels(self, x):
        start = self.draw(st.integers(0, x.shape[3] - 1))
        return self.b.channels(x, start, self.draw(st.integers(start + 1, x.shape[3])))

    def op_reshape(self, x):
        _, h, w, c = x.shape
        return self.b.reshape(x, *self.draw(st.sampled_from([(1, w, h, c), (1, 1, h * w, c), (1, h, w * c, 1), (1, 1, h, w * c)])))

    def op_transpose(self, x):
        return self.b.transpose(x, 0, *self.draw(st.permutations([1, 2, 3])))

    def op_pad(self, x):
        return self.b.pad(x, (0, 0), *(self.draw(st.tuples(st.integers(0, 2), st.integers(0, 2))) for _ in range(3)))

    def op_tile(self, x):
        return self.b.tile(x, 1, *(self.draw(st.integers(1, 2)) for _ in range(3)))

    def op_pool(self, x):
        return self.b.max_pool(x, (1, 1)) if min(x.shape[1:3]) < 2 else self.b.max_pool(x, (2, 2), pads=((0, 1), (0, 1)))

    def op_average(self, x):
        return self.b.sum_pool(x, (3, 3), pads=SAME, zero_point=0)

    def op_gate(self, x):
        return self.b.mul(x, self.b.reduce(Reduction.max, x, (1, 2)), zero_point=0)
