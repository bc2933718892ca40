"""How many bits each weight and each activation gets, for W8A8, W6A6, W4A8, W4A4 and the like.

What dot products multiply has the width that was asked for: weights of convolutions, and activations that convolutions, matrix products
or attention read, also by way of data movement. All else (operands of tables and additions) keeps 8 bits, residual streams 16.
Below 7 bits the first and the last layer keep 8: pixels have 8 bits, and nothing averages out errors of the answer (as in all of the
literature, for instance Li et al. 2023, RepQ-ViT, section 4.1). Narrow integers are stored one to a byte. Layers that ask for 16 bits
are not heard here but in `wide_readers`.

A plan (`precision/plan.py`) says it layer by layer instead, the ends included.
"""

from __future__ import annotations

from collections.abc import Callable

from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.ops import Conv, Input, MatMul
from qcompiler.ir.sequence import Attention

from .precision.plan import Plan, layers_of
from .storage_points import is_movement, storage_points

NARROW = 6
"""From this width down, first and last layers keep 8 bits."""


def weight_widths(graph: Graph, bits: int, plan: Plan | None = None) -> dict[Value, int]:
    """Bits of the weights of every convolution."""
    convs = [v for v in graph.order if isinstance(v.op, Conv)]
    if plan is not None:
        return {v: plan.of(v).weights for v in convs}
    ends = _first_and_last(graph) if bits <= NARROW else set()
    return {v: 8 if v in ends else bits for v in convs}


def activation_widths(graph: Graph, bits: int, plan: Plan | None = None) -> dict[Value, int]:
    """Bits of every stored activation, before 16-bit ones are chosen."""
    widths = layer_widths(graph, bits, plan)
    asked = _asked(graph, lambda v: min(widths[v], 8))
    return {v: asked.get(v, 8) for v in storage_points(graph)}


def layer_widths(graph: Graph, bits: int, plan: Plan | None = None) -> dict[Value, int]:
    """The bits that each layer asks of what it multiplies; 0 where it takes what it gets."""
    if plan is not None:
        return {v: plan.of(v).activations for v in layers_of(graph)}
    ends = _first_and_last(graph) if bits <= NARROW else set()
    return {v: 0 if isinstance(v.op, Conv) and v in ends else bits for v in layers_of(graph)}


def _asked(graph: Graph, bits_of: Callable[[Value], int]) -> dict[Value, int]:
    """The most bits that dot products ask of what they read, also through movement; `bits_of` a dot product, 0 where it asks for none."""
    asked = dict[Value, int]()
    for v in reversed(graph.order):
        for n, i in enumerate(v.inputs):
            wanted = bits_of(v) if isinstance(v.op, (MatMul, Attention)) or (isinstance(v.op, Conv) and n == 0) else 0
            if n == 0 and is_movement(v):
                wanted = max(wanted, asked.get(v, 0))
            if wanted:
                asked[i] = max(asked.get(i, 0), wanted)
    return asked


def _first_and_last(graph: Graph) -> set[Value]:
    """Convolutions that see an input, or lead to an output, with no other between."""
    first, last = set[Value](), set[Value]()
    ahead = {v for v in graph.order if isinstance(v.op, Input)}
    for v in graph.order:
        if any(i in ahead for i in v.inputs):
            (first if isinstance(v.op, Conv) else ahead).add(v)
    behind = set(graph.outputs)
    for v in reversed(graph.order):
        if v in behind:
            if isinstance(v.op, (Conv, MatMul, Attention)):
                last.add(v)
            else:
                behind.update(v.inputs)
    return first | {v for v in last if isinstance(v.op, Conv)}
