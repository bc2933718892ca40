"""How far onnxruntime may be from our integers: one, per operator.

onnxruntime requantizes in float32, y = round(acc * S) + z with ties to even; ours is within 1.5/64 of a step of the exact result before
it rounds (`numerics.requantize`). Both round something within 1/32 of the same real number, so given equal operands they differ by at most
`PER_OPERATOR` = 1. This does not hold on x86 CPUs without VNNI, where onnxruntime's `vpmaddubsw` kernels saturate 16-bit sums.

Over a whole network differences add up and no useful bound exists; what is tested is this: every operator, fed with the very
integers that onnxruntime computed on real data, gives in our arithmetic what onnxruntime gave, within one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from platform import machine

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from qcompiler.backends import reference
from qcompiler.frontend.export import Exported, Fuse, export
from qcompiler.ir.graph import Graph, Value, apply
from qcompiler.ir.ops import CountSteps, Dequantize, Input, Quantize
from qcompiler.passes.lower import lower_to_integers

from .qoperator import fuse_quantized

PER_OPERATOR = 1
"""Greatest difference of one operator's int8 results, given equal operands."""


@dataclass(frozen=True)
class Difference:
    """Of one quantized value: the greatest difference in steps, and the share of its elements that differ."""

    name: str
    greatest: int
    share: float


def saturates() -> bool:
    """Whether onnxruntime's int8 kernels may saturate on this machine: x86 without VNNI."""
    if machine().lower() not in ("x86_64", "amd64"):
        return False
    cpuinfo = Path("/proc/cpuinfo")
    return not (cpuinfo.exists() and "vnni" in cpuinfo.read_text(encoding="utf-8", errors="replace"))


def differences(graph: Graph, feeds: Mapping[str, NDArray[np.generic]], integer_operators: bool = False) -> Iterator[Difference]:
    """Every operator of the Q/DQ `graph`, onnxruntime against the reference, each on the operands that onnxruntime computed.

    `integer_operators` writes the model with QLinearConv and the like, as `export_qoperator` does.
    """
    stored = [v for v in graph.order if isinstance(v.op, Quantize)]
    theirs = _onnxruntime(graph, stored, feeds, fuse_quantized if integer_operators else lambda v: None)
    for v in stored:
        if not isinstance(v.inputs[0].op, (Input, CountSteps)):
            yield _difference(v, _reference(v, theirs), theirs[v])


def _onnxruntime(graph: Graph, wanted: Sequence[Value], feeds: Mapping[str, NDArray[np.generic]], fuse: Fuse) -> dict[Value, NDArray[np.generic]]:
    """The `wanted` values in the IR's axis order."""
    exported: Exported = export(graph, wanted, fuse)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(exported.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = list(dict.fromkeys(exported.names[v] for v in wanted))
    arrays = dict(zip(names, session.run(names, dict(feeds))))
    return {v: arrays[exported.names[v]].transpose(np.argsort(exported.perms[v])) for v in wanted}


def _reference(v: Value, integers: Mapping[Value, NDArray[np.generic]]) -> NDArray[np.generic]:
    """The Quantize `v` in our arithmetic, on given operands."""
    operands: dict[Value, Value] = {}
    alone = _cut(v, operands)
    graph = Graph(tuple(operands.values()), (alone,), ("result",))
    return reference.run(lower_to_integers(graph), {operands[q].name: integers[q] for q in operands})["result"]


def _cut(v: Value, operands: dict[Value, Value]) -> Value:
    """`v` with each quantized operand replaced by a graph input, recorded in `operands`."""
    inputs = tuple(_cut_input(i, operands) for i in v.inputs)
    return Value(v.op, inputs, v.type, v.name)


def _cut_input(v: Value, operands: dict[Value, Value]) -> Value:
    if isinstance(v.op, Dequantize) and isinstance(v.inputs[0].op, Quantize):
        q = v.inputs[0]
        operands.setdefault(q, apply(Input(q.type), name=f"operand{len(operands)}"))
        return Value(v.op, (operands[q],), v.type, v.name)
    return _cut(v, operands) if v.inputs else v


def _difference(v: Value, ours: NDArray[np.generic], theirs: NDArray[np.generic]) -> Difference:
    gap = np.abs(ours.astype(np.int64) - theirs.astype(np.int64))
    return Difference(v.name, int(gap.max()), float(np.mean(gap > 0)))
