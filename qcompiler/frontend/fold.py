"""Constant folding of single values, while a model is imported."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from qcompiler.ir.graph import Value
from qcompiler.ir.interpret import compute
from qcompiler.ir.ops import Cast, Const, Dequantize, Op, Reshape, Transpose, const_data
from qcompiler.ir.types import TensorType

LIMIT = 1 << 31
"""Bytes of the largest tensor: what fits into one ONNX file. A hostile model must not fill the memory."""

_MOVES = (Transpose, Reshape, Cast)


def limited(v: Value) -> Value:
    """`v` itself; ValueError where it would take more memory than any real network needs."""
    if v.type.nbytes > LIMIT:
        raise ValueError(f"{v.type} would take {v.type.nbytes} bytes, more than {LIMIT}")
    return v


def folded(v: Value) -> Value:
    """`v` as a constant where its operands are constant, else `v`.

    Dequantized weights stay as they are (their integers are the model's), but their layout is folded: a `Transpose` or
    `Reshape` of them becomes one of the integers. Weights keep their name through changes of layout.
    """
    if not v.inputs or isinstance(v.op, Dequantize):
        return v
    moved = _inside_dequantize(v)
    if moved is not None:
        return moved
    arrays = [const_data(i) for i in v.inputs]
    known = [a for a in arrays if a is not None]
    if len(known) < len(arrays):
        return v
    with np.errstate(all="ignore"):
        data = np.asarray(compute(v, known))
    name = v.inputs[0].name if isinstance(v.op, _MOVES) else v.name
    return Value(Const(data, v.type), (), v.type, name)


def known_array(v: Value) -> NDArray[np.generic] | None:
    """What `v` is, where that is known now: a constant, or a dequantized one; else None."""
    operands = [const_data(i) for i in v.inputs]
    if isinstance(v.op, Dequantize) and operands[0] is not None:
        return np.asarray(compute(v, operands))
    return const_data(v)


def _inside_dequantize(v: Value) -> Value | None:
    """``move(Dequantize(constant))`` as ``Dequantize(move(constant))``, or None where `v` is something else."""
    source = v.inputs[0]
    if not isinstance(source.op, Dequantize) or const_data(source.inputs[0]) is None:
        return None
    kind = _moved_type(v.op, source.inputs[0].type)
    if kind is None:
        return None
    integers = folded(Value(v.op, source.inputs, kind, source.inputs[0].name))
    return Value(source.op, (integers,), v.type, source.name)


def _moved_type(op: Op, type: TensorType) -> TensorType | None:
    """The type of quantized `type` after a move, the axis of its quantization re-aimed; None where that cannot be said."""
    if isinstance(op, Transpose):
        return op.infer(type)
    if not isinstance(op, Reshape) or type.quant is None:
        return None
    moved = op.infer(type)
    if type.quant.axis is None:
        return moved
    axes = [i for i in range(moved.rank) if _same_axis(type.shape, type.quant.axis, moved.shape, i)]
    return replace(moved, quant=replace(type.quant, axis=axes[0])) if axes else None


def _same_axis(old: tuple[int, ...], i: int, new: tuple[int, ...], j: int) -> bool:
    return old[i] == new[j] and prod(old[:i]) == prod(new[:j])
