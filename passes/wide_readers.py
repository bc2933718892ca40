"""Which convolutions and averages read 16 bits: those that are asked to (`precision/plan.py`), and those where it costs next to nothing:

- an average over all pixels, of what nothing else reads: it costs no product, and rounds the mean of values instead of each;
- a dense layer of one pixel: right behind such an average, or where all of them together have at most `LIGHT` of the network's products.
  Not where its weights have few bits: beside words they would be stored in bytes.

Both were among the greatest sources of noise in the answers of small convolutional networks, beside their few operations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import prod

from qcompiler.errors import UsageError
from qcompiler.ir.graph import Declined, Graph, Value
from qcompiler.ir.ops import AveragePool, Conv, MatMul, Quantize, Reduce, Reduction

from .given_scales import given_scales
from .precision.plan import Plan
from .scheme import PLAIN, Scheme
from .storage_points import is_movement, sharing_groups
from .wide_values import readers_of, reads_words, why_narrow
from .widths import layer_widths

LIGHT = 0.01
"""Part of a network's multiply-accumulates."""


def wide_readers(
    graph: Graph, bits: int, plan: Plan | None, scheme: Scheme, light: bool = True, few: frozenset[Value] = frozenset()
) -> frozenset[Value]:
    """What may read 16 bits, where the scheme has them; without those that are merely `light` if so asked. Weights of `few` have few bits."""
    if not scheme.streams or scheme.bits > 8:
        return frozenset()
    wanted = set(filter(reads_words, asked_readers(graph, bits, plan)))
    groups = sharing_groups(graph)
    if light and scheme == PLAIN and not any(isinstance(v.op, Quantize) for v in graph.order):
        wanted |= set(_light_readers(graph, groups, layer_widths(graph, bits, plan), few))
    read = {u.inputs[0] for u in wanted}
    return frozenset(wanted.union(*(filter(reads_words, readers_of(graph, g)) for g in groups if not read.isdisjoint(g))))


def asked_readers(graph: Graph, bits: int, plan: Plan | None) -> set[Value]:
    """The layers that are asked to read 16 bits, whether or not they can."""
    return {v for v, asked in layer_widths(graph, bits, plan).items() if asked > 8}


# --- what costs next to nothing --------------------------------------------------------------------------------------


def _light_readers(graph: Graph, groups: Iterable[list[Value]], widths: Mapping[Value, int], few: frozenset[Value]) -> Iterator[Value]:
    light = _light_layers(graph) - few
    for g in groups:
        readers = [] if any(v in graph.outputs for v in g) else readers_of(graph, g)
        if all(map(_is_average, readers)) or all(u in light and widths[u] in (0, 8) for u in readers):
            yield from readers


def _light_layers(graph: Graph) -> set[Value]:
    """The dense layers of one pixel that cost next to nothing."""
    dense = {v for v in graph.order if isinstance(v.op, Conv) and v.op.groups == 1 and v.inputs[0].shape[:3] == (1, 1, 1)}
    behind = {v for v in dense if _is_average(_moved(v.inputs[0]))}
    others = dense - behind
    return dense if sum(map(_products, others)) <= LIGHT * sum(map(_products, graph.order)) else behind


def _moved(x: Value) -> Value:
    """What `x` moves the elements of."""
    while is_movement(x):
        x = x.inputs[0]
    return x


def _is_average(v: Value) -> bool:
    """Whether `v` is a sum or mean over all rows and columns."""
    x = v.inputs[0].shape if v.inputs else ()
    if len(x) != 4 or x[1] * x[2] == 1:
        return False
    if isinstance(v.op, AveragePool):
        return v.shape[1:3] == (1, 1) and v.op.kernel == x[1:3]
    return isinstance(v.op, Reduce) and v.op.kind in (Reduction.sum, Reduction.mean) and set(v.op.axes) == {1, 2}


def _products(v: Value) -> int:
    if isinstance(v.op, Conv):
        return v.type.size * prod(v.inputs[1].shape[1:])
    return v.type.size * v.inputs[0].shape[-1] if isinstance(v.op, MatMul) else 0


# --- what is refused -------------------------------------------------------------------------------------------------


def check_readers(graph: Graph, bits: int, plan: Plan | None, scheme: Scheme, declined: Declined) -> None:
    """UsageError where a plan names a layer that cannot read the 16 bits it is to read; `declined` hears of those that were not named."""
    readers, groups = wide_readers(graph, bits, plan, scheme), {v: g for g in sharing_groups(graph) for v in g}
    for u in sorted(asked_readers(graph, bits, plan), key=graph.order.index):
        reason = _why_not(graph, u, readers, groups)
        if reason and plan is not None and u.name in plan.layers:
            raise UsageError(f"the precision plan asks that '{u.name}' read 16 bits, but {reason}; name w{plan.of(u).weights}a8 for it")
        if reason:
            declined(u, f"it reads 8 bits, not 16: {reason}")


def _why_not(graph: Graph, u: Value, readers: frozenset[Value], groups: Mapping[Value, list[Value]]) -> str | None:
    if not reads_words(u):
        return f"{_kind(u)} read 8 bits"
    if u not in readers:
        return "the scheme of scales has 8 bits alone"
    group = groups.get(u.inputs[0])
    if group is None or not given_scales(graph).keys().isdisjoint(group):
        return f"the model has quantized '{u.inputs[0].name}' itself"
    return why_narrow(graph, group, readers)


def _kind(u: Value) -> str:
    return "products of activations" if isinstance(u.op, MatMul) else "attention layers"
