"""A float or Q/DQ graph as a function of torch tensors, many samples at once, that can be differentiated by the weights of its layers.

    y = f(x; W_1, b_1 ... W_L, b_L)        Dequantize(Quantize(x)) is clip(round(x / S) + Z) back in real numbers; its derivative
                                           is 1 where nothing was clipped (Bengio et al. 2013, the straight-through estimator)

Convolutions, pools and quantization are torch's own; everything else is the IR interpreter's. Shapes of the IR are those of one sample. Batches run
at once where that gives the same answers, which is tried; else one sample after the other. Needs torch: `pip install 'qcompiler[torch]'`.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.interpret import compute, evaluate
from qcompiler.ir.ops import ArgMax, Concat, Const, Conv, Dequantize, Input, MaxPool, Quantize, Reshape, Slice
from qcompiler.ir.pointwise import Clip
from qcompiler.ir.types import Quantization

Tensor = Any
Feeds = Mapping[str, NDArray[np.generic]]
Parameters = Mapping[str, tuple[Tensor, Tensor]]
"""Weights [O,kh,kw,C/groups] and bias [O] by the name of the layer."""
MISSING = "torch is missing: pip install 'qcompiler[torch]'"
SAME = 1e-3
"""Answers of a batch may differ from those of its samples by this part of their greatest magnitude."""
LOWEST = -3e38


def import_torch() -> tuple[Any, Any] | None:
    """(torch, its array namespace), or None where they are not installed."""
    if "torch" not in sys.modules:
        # Threads that wait for each other by spinning are many times slower where other programs run too; read once, when OpenMP is loaded.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        import array_api_compat.torch as xp
        import torch
    except ImportError:
        return None
    return torch, xp


@contextmanager
def one_thread(torch: Any) -> Iterator[None]:
    """Within, every operation of torch is the work of the thread that asks for it: what it rounds does not depend on the number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def judged(graph: Graph) -> Graph:
    """The network up to its first output, or up to what a choice of the greatest looks at there."""
    v = graph.outputs[0]
    while isinstance(v.op, ArgMax):
        v = v.inputs[0]
    return Graph(graph.inputs, (v,), graph.output_names[:1])


def is_plain(graph: Graph) -> bool:
    """Whether integers exist only between a Quantize and its Dequantize, and in constants."""
    reads = (isinstance(v.inputs[0].op, Quantize) or _is_constant(v.inputs[0]) for v in graph.order if isinstance(v.op, Dequantize))
    read = (isinstance(u.op, Dequantize) for v in graph.order if isinstance(v.op, Quantize) for u in graph.uses[v])
    return all(reads) and all(read)


class TorchNetwork:
    """The first output of `graph`, and the values `watched` on the way."""

    def __init__(self, graph: Graph, torch: Any, xp: Any, sample: Feeds, watched: Sequence[Value] = ()) -> None:
        self.graph, self.watched, self._torch, self._xp = graph, watched, torch, xp
        fixed = [v for v in graph.order if _is_constant(v)]
        found = evaluate(Graph((), tuple(fixed), ()), {}) if fixed else {}
        self._fixed = {v: torch.as_tensor(np.array(a)) for v, a in found.items()}
        self._order = [v for v in graph.order if v not in self._fixed]
        self._left = {v for v in self._order if v not in watched and _is_stored_alone(v, graph)}
        self.together = True
        self.together = self._agrees(sample)

    def __call__(self, feeds: Mapping[str, Tensor], parameters: Parameters | None = None) -> Tensor:
        """The answers to samples that lie along the first axis of `feeds`; layers take their weights from `parameters` where they are there."""
        return self.values(feeds, parameters)[0]

    def values(self, feeds: Mapping[str, Tensor], parameters: Parameters | None = None) -> list[Tensor]:
        """The answers, and the values that are watched."""
        count = self.samples_in(feeds)
        if self.together or count == 1:
            return self._run(feeds, parameters or {}, count)
        parts = ({name: self.part(name, x, i) for name, x in feeds.items()} for i in range(count))
        return [self._torch.cat(found) for found in zip(*(self._run(p, parameters or {}, 1) for p in parts))]

    def samples_in(self, feeds: Mapping[str, Tensor]) -> int:
        """Their number."""
        v = next(v for v in self.graph.inputs if v.name in feeds and v.type.rank)
        return int(feeds[v.name].shape[0]) // v.shape[0]

    def part(self, name: str, x: Tensor, i: int) -> Tensor:
        """Sample i of the input of that name."""
        size = next(v.shape[0] for v in self.graph.inputs if v.name == name)
        return x[i * size : (i + 1) * size]

    def _agrees(self, sample: Feeds) -> bool:
        """Whether two different samples at once are answered as each alone; False where they cannot be run so."""
        if any(not v.type.rank or v.shape[0] != 1 for v in (*self.graph.inputs, *self.graph.outputs)):
            return False
        one = {name: self._torch.as_tensor(np.array(x)) for name, x in sample.items()}
        other = {name: self._torch.flip(x, [x.ndim - 1]) for name, x in one.items()}
        with self._torch.no_grad():
            alone = self._torch.cat([self._run(x, {}, 1)[0] for x in (one, other)])
            try:
                both = self._run({name: self._torch.cat([one[name], other[name]]) for name in one}, {}, 2)[0]
            except (RuntimeError, ValueError, IndexError):
                return False
        return both.shape == alone.shape and bool((both - alone).abs().mean() <= SAME * alone.abs().max())

    def _run(self, feeds: Mapping[str, Tensor], parameters: Parameters, count: int) -> list[Tensor]:
        env, wanted = dict[Value, Tensor](), (self.graph.outputs[0], *self.watched)
        pending = Counter(i for v in self._order for i in v.inputs)
        pending.update(wanted)
        for v in self._order:
            env[v] = feeds[v.name] if isinstance(v.op, Input) else self._one(v, env, parameters, count)
            for i in v.inputs:
                pending[i] -= 1
                if not pending[i]:
                    env.pop(i, None)
        return [env[v] for v in wanted]

    def _one(self, v: Value, env: Mapping[Value, Tensor], parameters: Parameters, count: int) -> Tensor:
        x, *others = (self._fixed[i] if i in self._fixed else env[i] for i in v.inputs)
        functional = self._torch.nn.functional
        match v.op:
            case Conv():
                return self._conv(v.op, x, *(parameters.get(v.name) or (*others, None)[:2]))
            case Quantize(type) if type.quant is not None:
                return self._stored(x, type.quant, v)
            case Dequantize():
                return x
            case MaxPool() as op:
                padded = functional.pad(_to_first(x), _padding(op.pads), value=LOWEST)
                return _to_last(functional.max_pool2d(padded, op.kernel, op.strides, 0, op.dilations))
            case Clip() if v in self._left:
                return x
            case Clip(low, high) if x.is_floating_point():
                return functional.relu(x) if (low, high) == (0, inf) else functional.hardtanh(x, max(low, LOWEST), min(high, -LOWEST))
            case Reshape(shape) if count > 1:
                return x.reshape(count, *shape[1:])
            case Slice() if count > 1:
                return x[(slice(None), *v.op.slices[1:])]
            case Concat() if count > 1:
                own = (a.expand(count, *a.shape[1:]) if i in self._fixed else a for i, a in zip(v.inputs, (x, *others)))
                return compute(v, list(own), self._xp)
        return compute(v, [x, *others], self._xp)

    def _conv(self, op: Conv, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        if _is_dense(op, w):
            # Torch's own convolution would copy to channels first: few samples on one thread are not given to oneDNN.
            return self._torch.nn.functional.linear(x, w.reshape(len(w), -1), b)
        x, (up, down), (left, right) = _to_first(x), *op.pads
        even = up == down and left == right
        x = x if even else self._torch.nn.functional.pad(x, (left, right, up, down))
        pads = (up, left) if even else (0, 0)
        return _to_last(self._torch.nn.functional.conv2d(x, _to_first(w), b, op.strides, pads, op.dilations, op.groups))

    def _stored(self, x: Tensor, q: Quantization, v: Value) -> Tensor:
        """Rounded behind the back of the derivative, which is that of what is within; a Clip before leaves its bounds to it."""
        low, high = ((end - q.zero_point[0]) * q.scale[0] for end in (q.qmin, q.qmax))
        if isinstance(clip := v.inputs[0].op, Clip):
            low, high = max(low, clip.lo), min(high, clip.hi)
        within = self._torch.nn.functional.hardtanh(x, low, high)
        with self._torch.no_grad():
            if q.levels is None and q.axis is None:
                return within.mul_(1 / q.scale[0]).round_().mul_(q.scale[0])
            integers = compute(v, [within], self._xp)
            return within.copy_((integers.to(self._torch.int64) - q.zero_point[0]).to(x.dtype) * q.scale[0])


def _is_dense(op: Conv, w: Tensor) -> bool:
    """Whether weights [O, kh, kw, C/groups] multiply every pixel by itself."""
    return tuple(w.shape[1:3]) == op.strides == (1, 1) and op.pads == ((0, 0), (0, 0)) and op.groups == 1


def _is_stored_alone(v: Value, graph: Graph) -> bool:
    """Whether `v` is a Clip that only Quantize reads."""
    return isinstance(v.op, Clip) and v not in graph.outputs and all(isinstance(u.op, Quantize) for u in graph.uses[v])


def _to_first(x: Tensor) -> Tensor:
    """[N,H,W,C] seen as [N,C,H,W]: no byte is moved."""
    return x.permute(0, 3, 1, 2)


def _to_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def _padding(pads: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    (up, down), (left, right) = pads
    return left, right, up, down


def _is_constant(v: Value) -> bool:
    return isinstance(v.op, Const) or (bool(v.inputs) and all(_is_constant(i) for i in v.inputs))
