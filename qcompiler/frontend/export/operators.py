"""One function per operator: reads its operands in the layout it needs, or follows the one they have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import singledispatch
from typing import Any

import numpy as np

from qcompiler.ir import ops
from qcompiler.ir.graph import Value
from qcompiler.ir.pointwise import Binary, Unary
from qcompiler.ir.types import DType

from .pointwise import clip, pointwise
from .resize import standard_mode
from .writer import CHANNELS_FIRST, Perm, Writer, axis_attribute, identity, layout_free, onnx_dtype, same_order

AXES_ARE_INPUTS = 18
"""The opset from which reductions other than sums take axes as an operand."""


@singledispatch
def emit(op: ops.Op, v: Value, w: Writer) -> None:
    """Write `v`, whose operands are already written, and place it. NotImplementedError for integer-stage operators."""
    raise NotImplementedError(f"expected an operator of the float or Q/DQ stage, found {type(op).__name__} at '{v.name}'")


# --- pointwise: any layout --------------------------------------------------------------------------------------------


@emit.register(Unary)
@emit.register(Binary)
@emit.register(ops.Where)
@emit.register(ops.Cast)
def _pointwise(op: ops.Op, v: Value, w: Writer) -> None:
    perm = common_layout(v.inputs, v, w)
    names = [broadcast_operand(i, v.type.rank, perm, w) for i in v.inputs]
    w.place(v, pointwise(w, op, names, v.inputs[0].type.dtype, v.name), perm)


def common_layout(operands: Sequence[Value], v: Value, w: Writer) -> Perm:
    """The layout of the first operand that has one and the rank of the result `v`; the IR's where there is none."""
    return next((w.layout(i) for i in operands if not layout_free(i) and i.type.rank == v.type.rank), identity(v))


def broadcast_operand(x: Value, rank: int, perm: Perm, w: Writer) -> str:
    """`x` so that it broadcasts, by ONNX's rules, against tensors of `rank` in layout `perm`."""
    if x.type.rank == rank or x.type.rank == 0:
        return w.read(x, perm if x.type.rank else ())
    shape = (1,) * (rank - x.type.rank) + x.shape
    data = ops.const_data(x)
    if data is not None:
        return w.tensor(data.reshape(shape).transpose(perm), x.name)
    lifted = w.node("Reshape", [w.read(x, identity(x)), w.integers(shape, f"{x.name}_shape")], f"{x.name}_lifted")
    return lifted if perm == tuple(range(rank)) else w.node("Transpose", [lifted], f"{x.name}_lifted", perm=list(perm))


# --- movement -------------------------------------------------------------------------------------------------------


@emit.register
def _transpose(op: ops.Transpose, v: Value, w: Writer) -> None:
    for perm, name in dict(w.layouts(v.inputs[0])).items():
        w.place(v, name, tuple(op.perm.index(p) for p in perm))


@emit.register
def _reshape(op: ops.Reshape, v: Value, w: Writer) -> None:
    x = v.inputs[0]
    perm = w.layout(x) if same_order(x.shape, w.layout(x)) else identity(x)
    made = CHANNELS_FIRST if v.type.rank == 4 and same_order(op.shape, CHANNELS_FIRST) else identity(v)
    w.place(v, w.node("Reshape", [w.read(x, perm), w.integers([op.shape[p] for p in made], f"{v.name}_shape")], v.name), made)


@emit.register
def _expand(op: ops.Expand, v: Value, w: Writer) -> None:
    x = v.inputs[0]
    perm = w.layout(x) if x.type.rank == v.type.rank else identity(v)
    target = w.integers([v.shape[p] for p in perm], f"{v.name}_shape")
    w.place(v, w.node("Expand", [broadcast_operand(x, v.type.rank, perm, w), target], v.name), perm)


@emit.register
def _tile(op: ops.Tile, v: Value, w: Writer) -> None:
    perm = w.layout(v.inputs[0])
    w.place(v, w.node("Tile", [w.read(v.inputs[0]), w.integers([op.repeats[p] for p in perm], f"{v.name}_repeats")], v.name), perm)


@emit.register
def _concat(op: ops.Concat, v: Value, w: Writer) -> None:
    perm = common_layout(v.inputs, v, w)
    w.place(v, w.node("Concat", [w.read(i, perm) for i in v.inputs], v.name, axis=perm.index(op.axis)), perm)


@emit.register
def _slice(op: ops.Slice, v: Value, w: Writer) -> None:
    perm = w.layout(v.inputs[0])
    axes = [i for i, p in enumerate(perm) if (op.starts[p], op.stops[p], op.steps[p]) != (0, v.inputs[0].shape[p], 1)]
    w.place(v, _sliced(w, w.read(v.inputs[0]), op, [(a, perm[a]) for a in axes], v.name), perm)


def _sliced(w: Writer, x: str, op: ops.Slice, axes: Sequence[tuple[int, int]], name: str) -> str:
    """Slice along pairs (ONNX axis, IR axis). A stop of -1 means "through index 0", which ONNX spells as a very low number."""
    if not axes:
        return w.node("Identity", [x], name)
    stops = [op.stops[p] if op.stops[p] >= 0 else -(1 << 31) for _, p in axes]
    columns = {"starts": [op.starts[p] for _, p in axes], "stops": stops, "axes": [a for a, _ in axes], "steps": [op.steps[p] for _, p in axes]}
    return w.node("Slice", [x, *(w.integers(c, f"{name}_{k}") for k, c in columns.items())], name)


@emit.register
def _pad(op: ops.Pad, v: Value, w: Writer) -> None:
    x = v.inputs[0]
    perm, cropped = (
        w.layout(x),
        ops.Slice(tuple(max(-a, 0) for a, _ in op.pads), tuple(d - max(-b, 0) for d, (_, b) in zip(x.shape, op.pads)), (1,) * x.type.rank),
    )
    axes = [(i, p) for i, p in enumerate(perm) if min(op.pads[p]) < 0]
    name = _sliced(w, w.read(x), cropped, axes, f"{v.name}_cropped") if axes else w.read(x)
    w.place(v, padded(w, name, [op.pads[p] for p in perm], op, v), perm)


def padded(w: Writer, x: str, pads: Sequence[tuple[int, int]], op: ops.Pad, v: Value) -> str:
    """Pad by the positive of `pads`, given in ONNX axis order."""
    amounts = w.integers([max(a, 0) for a, _ in pads] + [max(b, 0) for _, b in pads], f"{v.name}_pads")
    value = [w.scalar(op.value, v.type.dtype)] if op.mode is ops.PadMode.constant else []
    return w.node("Pad", [x, amounts, *value], v.name, mode=op.mode.value)


@emit.register
def _gather(op: ops.Gather, v: Value, w: Writer) -> None:
    x, indices = v.inputs
    have, rank = w.layout(x), indices.type.rank
    block = tuple(range(op.axis, op.axis + rank))
    perm: Perm = tuple(q for p in have for q in (block if p == op.axis else (p if p < op.axis else p + rank - 1,)))
    w.place(v, w.node("Gather", [w.read(x, have), w.read(indices, identity(indices))], v.name, axis=have.index(op.axis)), perm)


# --- windows ----------------------------------------------------------------------------------------------------------


def flat_pads(pads: ops.Pads) -> list[int]:
    """ONNX order: all begins, then all ends."""
    return [a for a, _ in pads] + [b for _, b in pads]


@emit.register
def _conv(op: ops.Conv, v: Value, w: Writer) -> None:
    w.place(v, w.node("Conv", conv_operands(v, w), v.name, **conv_attributes(op, v)), CHANNELS_FIRST)


@emit.register
def _conv_transpose(op: ops.ConvTranspose, v: Value, w: Writer) -> None:
    attributes = conv_attributes(op, v) | {"output_padding": list(op.output_padding)}
    w.place(v, w.node("ConvTranspose", conv_operands(v, w), v.name, **attributes), CHANNELS_FIRST)


def conv_operands(v: Value, w: Writer) -> list[str]:
    """Names of x, weights and bias, channels-first."""
    x, weights, *bias = v.inputs
    return [w.read(x, CHANNELS_FIRST), w.read(weights, CHANNELS_FIRST), *(w.read(b, (0,)) for b in bias)]


def conv_attributes(op: ops.Conv | ops.ConvTranspose, v: Value) -> dict[str, Any]:
    """Attributes that Conv, ConvTranspose and QLinearConv share."""
    return {
        "kernel_shape": list(v.inputs[1].shape[1:3]),
        "strides": list(op.strides),
        "pads": flat_pads(op.pads),
        "dilations": list(op.dilations),
        "group": op.groups,
    }


def pool_attributes(op: ops._Pool, pads: ops.Pads) -> dict[str, Any]:
    """Attributes of MaxPool and AveragePool. Dilations of one go unsaid: onnxruntime's quantized pools know no such attribute."""
    dilations = {} if op.dilations == (1, 1) else {"dilations": list(op.dilations)}
    return {"kernel_shape": list(op.kernel), "strides": list(op.strides), "pads": flat_pads(pads), **dilations}


def pads_fit(op: ops._Pool) -> bool:
    """Whether runtimes take the pads as an attribute: each must be below the kernel size."""
    return all(max(p) < k for p, k in zip(op.pads, op.kernel))


@emit.register
def _max_pool(op: ops.MaxPool, v: Value, w: Writer) -> None:
    w.place(v, max_pool(op, v, v.inputs[0], w), CHANNELS_FIRST)


def max_pool(op: ops.MaxPool, v: Value, x: Value, w: Writer) -> str:
    """MaxPool of `x`, float or quantized; pads that runtimes refuse become a Pad with the least value."""
    name, pads = w.read(x, CHANNELS_FIRST), op.pads
    if not pads_fit(op):
        least = -np.inf if x.type.dtype.is_float else float(np.iinfo(x.type.dtype.numpy).min)
        amounts = w.integers(flat_pads(((0, 0), (0, 0), *pads)), f"{v.name}_pads")
        name, pads = w.node("Pad", [name, amounts, w.scalar(least, x.type.dtype)], f"{v.name}_padded"), ((0, 0), (0, 0))
    return w.node("MaxPool", [name], v.name, **pool_attributes(op, pads))


@emit.register
def _average_pool(op: ops.AveragePool, v: Value, w: Writer) -> None:
    counted = op.counted_pads == op.pads
    if pads_fit(op) and (counted or op.counted_pads == ((0, 0), (0, 0))):
        attributes = pool_attributes(op, op.pads) | {"count_include_pad": int(counted)}
        w.place(v, w.node("AveragePool", [w.read(v.inputs[0], CHANNELS_FIRST)], v.name, **attributes), CHANNELS_FIRST)
    else:
        w.place(v, _sum_and_divide(op, v, w), CHANNELS_FIRST)


def _sum_and_divide(op: ops.AveragePool, v: Value, w: Writer) -> str:
    """Depthwise convolution by ones, divided by the number of counted elements: what ceil_mode with padding needs."""
    channels = v.shape[3]
    ones = w.tensor(np.ones((channels, 1, *op.kernel), np.float32), f"{v.name}_ones")
    total = w.node("Conv", [w.read(v.inputs[0], CHANNELS_FIRST), ones], f"{v.name}_sum", group=channels, **pool_attributes(op, op.pads))
    divisors = op.divisors(v.inputs[0].shape).transpose(2, 0, 1).astype(np.float32)
    return w.node("Div", [total, w.tensor(divisors, f"{v.name}_divisors")], v.name)


@emit.register
def _resize(op: ops.Resize, v: Value, w: Writer) -> None:
    x = v.inputs[0]
    mode = standard_mode(op, x.shape)
    perm = CHANNELS_FIRST if mode and x.type.rank == 4 else w.layout(x)
    if mode is None:
        w.place(v, _interpolated(op, v, w, perm), perm)
        return
    sizes = w.integers([v.shape[p] for p in perm], f"{v.name}_sizes")
    w.place(v, w.node("Resize", [w.read(x, perm), "", "", sizes], v.name, **mode.attributes()), perm)


def _interpolated(op: ops.Resize, v: Value, w: Writer, perm: Perm) -> str:
    """Axis after axis, x0 + t * (x1 - x0) of two gathered operands."""
    name = w.read(v.inputs[0], perm)
    for axis, taps in enumerate(op.taps):
        if taps is not None:
            name = _interpolate_axis(w, name, perm.index(axis), taps, v)
    return name


def _interpolate_axis(w: Writer, x: str, axis: int, taps: tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]], v: Value) -> str:
    first, second = (w.node("Gather", [x, w.integers(i, f"{v.name}_taps")], v.name, axis=axis) for i in taps[:2])
    if not any(taps[2]):
        return first
    weights = np.array(taps[2], v.type.dtype.numpy).reshape([-1 if a == axis else 1 for a in range(v.type.rank)])
    step = w.node("Sub", [second, first], f"{v.name}_step")
    return w.node("Add", [first, w.node("Mul", [step, w.tensor(weights, f"{v.name}_weights")], f"{v.name}_part")], v.name)


# --- products and reductions --------------------------------------------------------------------------------------------


@emit.register
def _matmul(op: ops.MatMul, v: Value, w: Writer) -> None:
    w.place(v, w.node("MatMul", [w.read(i, identity(i)) for i in v.inputs], v.name), identity(v))


def reduced_layout(perm: Perm, axes: Sequence[int], keepdims: bool) -> Perm:
    """The layout of a reduction's result when its operand has layout `perm`."""
    kept = [p for p in perm if keepdims or p not in axes]
    return tuple(sorted(kept).index(p) for p in kept)


@emit.register
def _reduce(op: ops.Reduce, v: Value, w: Writer) -> None:
    x = v.inputs[0]
    if op == ops.Reduce(ops.Reduction.mean, (1, 2)) and x.type.rank == 4:
        w.place(v, w.node("GlobalAveragePool", [w.read(x, CHANNELS_FIRST)], v.name), CHANNELS_FIRST)
        return
    perm = w.layout(x)
    axes = sorted(perm.index(a) for a in op.axes)
    kind = f"Reduce{op.kind.value.capitalize()}"
    if w.opset < AXES_ARE_INPUTS and op.kind is not ops.Reduction.sum:
        out = w.node(kind, [w.read(x)], v.name, keepdims=int(op.keepdims), axes=axes)
    else:
        out = w.node(kind, [w.read(x), w.integers(axes, f"{v.name}_axes")], v.name, keepdims=int(op.keepdims), noop_with_empty_axes=1)
    w.place(v, out, reduced_layout(perm, op.axes, op.keepdims))


@emit.register
def _arg_max(op: ops.ArgMax, v: Value, w: Writer) -> None:
    x = v.inputs[0]
    perm = w.layout(x)
    if op.k > 1:
        axis, count = perm.index(op.axis), w.integers([op.k], f"{v.name}_k")
        w.place(v, w.node("TopK", [w.read(x), count], v.name, skipped=1, axis=axis), perm)
        return
    attributes: dict[str, Any] = {"axis": perm.index(op.axis), "keepdims": int(op.keepdims), "select_last_index": int(op.last)}
    w.place(v, w.node("ArgMax", [w.read(x)], v.name, **attributes), reduced_layout(perm, (op.axis,), op.keepdims))


@emit.register
def _softmax(op: ops.Softmax, v: Value, w: Writer) -> None:
    perm = w.layout(v.inputs[0])
    w.place(v, w.node("LogSoftmax" if op.log else "Softmax", [w.read(v.inputs[0])], v.name, axis=perm.index(op.axis)), perm)


# --- quantization ---------------------------------------------------------------------------------------------------------


@emit.register
def _count_steps(op: ops.CountSteps, v: Value, w: Writer) -> None:
    x, perm = v.inputs[0], w.layout(v.inputs[0])
    step, shift = (a.transpose(perm) for a in op.along(v.type.rank))
    name = w.node("Div", [w.read(x), w.tensor(step, f"{v.name}_step")], f"{v.name}_unshifted" if shift.any() else v.name)
    w.place(v, w.node("Add", [name, w.tensor(shift, f"{v.name}_shift")], v.name) if shift.any() else name, perm)


@emit.register
def _quantize(op: ops.Quantize, v: Value, w: Writer) -> None:
    x, quant = v.inputs[0], op.type.quant
    assert quant is not None
    perm = w.layout(x)
    name = w.read(x)
    if quant.bits < 8 * op.type.dtype.numpy.itemsize and quant.axis is None:
        name = _limited(w, name, v)
    affine = w.affine(quant, op.type.dtype, v.name)
    q = w.node("QuantizeLinear", [name, *affine], v.name, w.quantizer_domain(op.type.dtype), **axis_attribute(quant, perm))
    w.place(v, q if quant.levels is None else _nearest_level(w, q, v), perm)


def _nearest_level(w: Writer, q: str, v: Value) -> str:
    """The integers `q` as the nearest of their codebook: Gather from 256 entries, where a negative index counts from the end."""
    assert v.type.quant is not None
    levels = v.type.quant.nearest_level()  # of -128, -127 ..
    table = levels + 128 if v.type.dtype is DType.u8 else np.roll(levels, -128)
    index = w.node("Cast", [q], f"{v.name}_index", to=onnx_dtype(DType.i32))
    return w.node("Gather", [w.tensor(table.astype(v.type.dtype.numpy), f"{v.name}_levels"), index], f"{v.name}_level", axis=0)


def _limited(w: Writer, x: str, v: Value) -> str:
    """`x` clipped to what fewer bits than the storage type can hold; QuantizeLinear saturates to the storage type only."""
    quant = v.type.quant
    assert quant is not None
    zero = quant.zero_point[0] - (128 if v.type.dtype is DType.u8 else 0)
    lo, hi = (float(quant.scale[0]) * (q - zero) for q in (quant.qmin, quant.qmax))
    return clip(w, x, lo, hi, DType.f32, f"{v.name}_limited")


@emit.register
def _dequantize(op: ops.Dequantize, v: Value, w: Writer) -> None:
    perm = w.layout(v.inputs[0])
    w.place(v, w.dequantize(v.inputs[0], perm, v.name), perm)


@emit.register
def _integers(op: ops.Integers, v: Value, w: Writer) -> None:
    """Of the declared type: by another pair of the same scale, where the graph keeps them in a type of the other sign."""
    q, perm = v.inputs[0], w.layout(v.inputs[0])
    name, quant = w.read(q), q.type.quant
    assert quant is not None
    if q.type.dtype is not op.dtype:
        half = op.sign_bit(q.type) * (1 if q.type.dtype.numpy.kind == "i" else -1)
        moved = replace(quant, zero_point=tuple(z + half for z in quant.zero_point))
        operands = [w.dequantize(q, perm, f"{v.name}_real"), *w.affine(moved, op.dtype, v.name)]
        name = w.node("QuantizeLinear", operands, v.name, w.quantizer_domain(op.dtype), **axis_attribute(moved, perm))
    w.place(v, name, perm)
