"""A normalization that both dense layers and a residual stream read is computed twice.

    x = normalize(..);  y = x + dense(x)        becomes        x, x' = normalize(..) twice;  y = x' + dense(x)

That is how transformers with normalization after the addition (BERT) are made. Dense layers want eight bits and channels of equal
ranges (`reparameterize`), the stream wants sixteen bits and the channels as they are. A normalization costs a few percent of the dense layer
behind it, and less than the pass over memory that converting one form into the other would take.
"""

from __future__ import annotations

from dataclasses import replace

from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.ops import Conv, Reshape
from qcompiler.ir.pointwise import Add
from qcompiler.ir.sequence import Normalize


def split_normalizations(graph: Graph) -> Graph:
    """The same graph, with a second copy of every such normalization for its additions."""
    copies = {v: replace(v, name=f"{v.name}.stream") for v in graph.order if isinstance(v.op, Normalize) and _is_shared(graph, v)}
    if not copies:
        return graph
    new = dict[Value, Value]()
    stream = dict[Value, Value]()
    for v in graph.order:
        inputs = tuple(stream[i] if i in stream and isinstance(v.op, Add) else new[i] for i in v.inputs)
        new[v] = v if inputs == v.inputs else replace(v, inputs=inputs)
        if v in copies:
            stream[v] = replace(copies[v], inputs=inputs)
    return Graph(graph.inputs, tuple(new[v] for v in graph.outputs), graph.output_names)


def _is_shared(graph: Graph, v: Value) -> bool:
    """Whether additions read `v`, and dense layers, perhaps reshaped, too."""
    users = graph.uses[v]
    return any(isinstance(u.op, Add) for u in users) and any(isinstance(u.op, (Conv, Reshape)) for u in users)
