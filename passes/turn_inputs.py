"""x = transpose(transpose(x)): where a transposition is stuck before a convolution or a sum, its layout starts at the graph input.

Sinking alone leaves ``conv(transpose(f(input)))`` in the middle for preprocessing f. Supposing the input came channels-last,
with a transposition back right behind it, all of f turns as that one sinks; the supposition then costs one
transposition at the input itself. Kept where it moves no more elements than before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from qcompiler.ir.graph import Graph, Value, apply, substitute
from qcompiler.ir.ops import AveragePool, Concat, Conv, ConvTranspose, Input, MaxPool, Transpose
from qcompiler.ir.pointwise import Binary
from qcompiler.ir.types import TensorType

from .axes import Axes, inverse

STICKY = (Conv, ConvTranspose, MaxPool, AveragePool, Binary, Concat)
"""What a transposition that has sunk as far as it can may still stand before: reshapes and products aside, which it may have to."""


def turn_inputs(graph: Graph, settle: Callable[[Graph], Graph]) -> Graph:
    """Put the layout of the network at its inputs; `settle` sinks transpositions, and has been run on `graph`."""
    for v in graph.inputs:
        if len(v.shape) >= 3 and any(_is_stuck(graph, t) for t in graph.order):
            turned = _turned(graph, v, settle)
            graph = turned if elements_moved(turned) <= elements_moved(graph) else graph
    return graph


def elements_moved(graph: Graph) -> int:
    """How many elements all transpositions write."""
    return sum(v.type.size for v in graph.order if isinstance(v.op, Transpose))


def _is_stuck(graph: Graph, t: Value) -> bool:
    return isinstance(t.op, Transpose) and not isinstance(t.inputs[0].op, Input) and any(isinstance(u.op, STICKY) for u in graph.uses[t])


def _turned(graph: Graph, v: Value, settle: Callable[[Graph], Graph]) -> Graph:
    to_last: Axes = (0, *range(2, len(v.shape)), 1)
    type = TensorType(tuple(v.shape[p] for p in to_last), v.type.dtype, v.type.quant)
    supposed = Value(Input(type), (), type, v.name)
    back = apply(Transpose(inverse(to_last)), supposed, name=f"{v.name}.first")
    settled = settle(_replaced(graph, v, back, tuple(supposed if i is v else i for i in graph.inputs)))
    real = apply(Transpose(to_last), v, name=f"{v.name}.last")
    return _replaced(settled, supposed, real, graph.inputs)


def _replaced(graph: Graph, old: Value, new: Value, inputs: tuple[Value, ...]) -> Graph:
    """`graph` reading `new` instead of `old`, with the given inputs."""
    return replace(substitute(graph, lambda v: new if v is old else v), inputs=inputs)
