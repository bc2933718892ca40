"""What a graph may hold at each stage: a table of legal operators and the types of their operands and results.

"Integer-only" is a stage: floats exist only as graph inputs read by `Quantize` and as graph outputs made by `Dequantize`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from itertools import chain, repeat

from qcompiler.errors import ProofError

from . import integer, ops, pointwise, sequence
from .graph import Graph, Value
from .ops import Op
from .types import DType, TensorType


@dataclass(frozen=True)
class Kind:
    """A set of types, with its description for messages."""

    text: str
    holds: Callable[[TensorType], bool]


ANY = Kind("any type", lambda t: True)
PLAIN = Kind("a type without quantization", lambda t: t.quant is None)
FLOAT = Kind("a float", lambda t: t.dtype.is_float and t.quant is None)
QUANTIZED = Kind("a quantized integer", lambda t: not t.dtype.is_float and t.quant is not None)
BOOL = Kind("a boolean", lambda t: t.dtype is DType.bool)
INTEGER = Kind("an integer", lambda t: not t.dtype.is_float)
INDEX = Kind("int32 or int64 without quantization", lambda t: t.dtype in (DType.i32, DType.i64) and t.quant is None)
ACTIVATION = Kind("int8 quantized per tensor", lambda t: t.dtype is DType.i8 and t.quant is not None and t.quant.axis is None)
WIDE = Kind("int16 quantized symmetrically per tensor", lambda t: t.dtype is DType.i16 and t.quant is not None and t.quant.zero_point == (0,))
EITHER = Kind("int8 or int16 quantized per tensor", lambda t: ACTIVATION.holds(t) or WIDE.holds(t))
WEIGHTS = Kind("int8 quantized", lambda t: t.dtype is DType.i8 and t.quant is not None)
BYTES = Kind("int8", lambda t: t.dtype is DType.i8)
WORDS = Kind("int32", lambda t: t.dtype is DType.i32)
HALVES = Kind("int16", lambda t: t.dtype is DType.i16)
OCTETS = Kind("uint8", lambda t: t.dtype is DType.u8)
SOURCE = Kind("a float, int8 quantized per tensor, or an integer that is not", lambda t: t.quant is None or ACTIVATION.holds(t))


@dataclass(frozen=True)
class Legal:
    """Result and operand types of an operator; the last operand kind holds for all further ones."""

    result: Kind
    operands: tuple[Kind, ...] = ()


Table = Mapping[type[Op], Legal]
Structure = Callable[[Graph, Value], "str | None"]
"""What else is wrong with a value, beyond its types."""


def _subclasses(base: type[Op]) -> Iterator[type[Op]]:
    yield base
    for sub in base.__subclasses__():
        yield from _subclasses(sub)


def _each(legal: Legal, *classes: type[Op]) -> dict[type[Op], Legal]:
    return dict.fromkeys(classes, legal)


MOVEMENT = (ops.Transpose, ops.Reshape, ops.Expand, ops.Tile, ops.Concat, ops.Slice, ops.Pad, ops.MaxPool, ops.Reduce, ops.Resize)
POINTWISE = tuple(c for base in (pointwise.Unary, pointwise.Binary) for c in _subclasses(base) if c.__module__ == pointwise.__name__)

ACCUMULATING = (integer.IntSum, integer.IntMul, integer.IntMatMul, integer.IntSumPool, integer.IntReduceSum, integer.IntResize)

FLOAT_TABLE: Table = {
    **_each(Legal(PLAIN, (PLAIN,)), *POINTWISE, ops.Cast, ops.MatMul, ops.AveragePool, ops.Softmax, ops.ArgMax),
    **_each(Legal(FLOAT, (FLOAT,)), ops.Conv, ops.ConvTranspose, sequence.Normalize, sequence.Rotate),
    sequence.Attention: Legal(FLOAT, (FLOAT, FLOAT, FLOAT, PLAIN)),
    **_each(Legal(ANY, (ANY,)), *MOVEMENT),
    ops.Gather: Legal(ANY, (ANY, INDEX)),
    ops.Where: Legal(PLAIN, (BOOL, PLAIN)),
    ops.Input: Legal(PLAIN),
    ops.Const: Legal(ANY),
    ops.CountSteps: Legal(FLOAT, (FLOAT,)),
    ops.Quantize: Legal(QUANTIZED, (FLOAT,)),
    ops.Dequantize: Legal(FLOAT, (QUANTIZED,)),
    ops.Integers: Legal(PLAIN, (QUANTIZED,)),
}

INTEGER_TABLE: Table = {
    **_each(Legal(INTEGER, (INTEGER,)), *MOVEMENT),
    ops.Input: Legal(SOURCE),
    ops.Const: Legal(INTEGER),
    ops.CountSteps: Legal(FLOAT, (FLOAT,)),
    ops.Quantize: Legal(ACTIVATION, (FLOAT,)),
    ops.Dequantize: Legal(FLOAT, (EITHER,)),
    ops.Integers: Legal(PLAIN, (EITHER,)),
    ops.Gather: Legal(INTEGER, (INTEGER, INDEX)),
    ops.ArgMax: Legal(INDEX, (EITHER,)),
    integer.IntConv: Legal(WORDS, (EITHER, WEIGHTS, WORDS, EITHER, WORDS)),
    **_each(Legal(WORDS, (ACTIVATION,)), *ACCUMULATING),
    **_each(Legal(WORDS, (EITHER,)), integer.IntSum, integer.IntReduceSum, integer.IntSumPool),
    integer.Requantize: Legal(EITHER, (WORDS,)),
    integer.Lookup: Legal(ACTIVATION, (ACTIVATION, BYTES)),
    integer.IntSoftmax: Legal(ACTIVATION, (ACTIVATION, WORDS)),
    **_each(Legal(EITHER, (EITHER,)), integer.Clamp, integer.IntMax, integer.IntMin),
    integer.IntAdd: Legal(WIDE, (WIDE,)),
    integer.IntNarrow: Legal(ACTIVATION, (WIDE,)),
    integer.IntCast: Legal(ACTIVATION, (INTEGER,)),
    integer.IntNormalize: Legal(EITHER, (EITHER, WORDS, WORDS)),
    integer.IntAttention: Legal(ACTIVATION, (ACTIVATION, ACTIVATION, ACTIVATION, OCTETS, INTEGER)),
    integer.IntRotate: Legal(WORDS, (EITHER, HALVES, HALVES)),
}


def _any_structure(graph: Graph, v: Value) -> str | None:
    return None


def _qdq_structure(graph: Graph, v: Value) -> str | None:
    """Convolutions read what is stored as integers."""
    if isinstance(v.op, ops.Conv) and not isinstance(v.inputs[0].op, ops.Dequantize):
        return f"expected a Dequantize as operand, found {v.inputs[0]!r}"
    return None


def _integer_structure(graph: Graph, v: Value) -> str | None:
    """Floats at the border only; movement does not change quantization, and is movement indeed."""
    match v.op:
        case ops.CountSteps() if not isinstance(v.inputs[0].op, ops.Input):
            return f"expected a graph input as operand, found {v.inputs[0]!r}"
        case ops.Quantize() if not isinstance(v.inputs[0].op, (ops.Input, ops.CountSteps)):
            return f"expected a graph input, or its steps, as operand, found {v.inputs[0]!r}"
        case ops.Dequantize() if graph.uses[v]:
            return f"expected a graph output that nothing reads, found readers {list(graph.uses[v])}"
        case ops.Input() if v.type.dtype.is_float and not all(isinstance(u.op, (ops.Quantize, ops.CountSteps)) for u in graph.uses[v]):
            return f"expected Quantize as only reader, found {list(graph.uses[v])}"
        case ops.Reduce(kind=ops.Reduction.sum | ops.Reduction.mean) as op if type(op) is ops.Reduce:
            return f"expected a maximum or minimum, found {op.kind.name}: sums are IntReduceSum"
        case ops.Resize(nearest=False):
            return "expected nearest neighbours, found interpolation: that is IntResize"
    return _requantized_by_moving(v) if type(v.op) in (*MOVEMENT, ops.Gather) else None


def _requantized_by_moving(v: Value) -> str | None:
    moved = v.inputs[:1] if isinstance(v.op, ops.Gather) else v.inputs
    if isinstance(v.op, ops.Transpose) or all(i.type.quant == v.type.quant for i in moved):
        return None
    return f"expected the quantization of its operands to be kept, found {', '.join(str(i.type) for i in moved)}"


class Stage(Enum):
    """The stages of a graph, with what is legal there."""

    float = (FLOAT_TABLE, _any_structure)
    qdq = (FLOAT_TABLE, _qdq_structure)
    integer = (INTEGER_TABLE, _integer_structure)

    def __init__(self, table: Table, structure: Structure) -> None:
        self.table = table
        self.structure = structure


def verify(graph: Graph, stage: Stage) -> Graph:
    """The same graph, if it is legal at `stage`; ProofError names the first value that is not."""
    for v in graph.order:
        if (problem := _problem(graph, v, stage)) is not None:
            raise ProofError(f"{type(v.op).__name__} '{v.name}' ({v.type}) is not legal at stage {stage.name}: {problem}")
    return graph


def _problem(graph: Graph, v: Value, stage: Stage) -> str | None:
    legal = stage.table.get(type(v.op))
    if legal is None:
        return f"expected one of its operators ({', '.join(sorted(c.__name__ for c in stage.table if not c.__name__.startswith('_')))})"
    if not legal.result.holds(v.type):
        return f"expected {legal.result.text} as result, found {v.type}"
    kinds = chain(legal.operands, repeat(legal.operands[-1] if legal.operands else ANY))
    for i, kind in zip(v.inputs, kinds):
        if not kind.holds(i.type):
            return f"expected {kind.text} as operand '{i.name}', found {i.type}"
    return _inconsistency(v) or stage.structure(graph, v)


def _inconsistency(v: Value) -> str | None:
    """Where the type of a value is not the one that its operator gives it."""
    try:
        inferred = v.op.infer(*(i.type for i in v.inputs))
    except (ValueError, TypeError, IndexError) as error:
        return f"expected operands that fit, found: {error}"
    if (inferred.shape, inferred.dtype) != (v.type.shape, v.type.dtype):
        return f"expected {inferred} by inference, found {v.type}"
    return None
