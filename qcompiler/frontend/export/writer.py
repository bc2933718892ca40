"""Collects ONNX nodes and remembers in which axis order each IR value exists, so that hardly any Transpose is written.

The IR is channels-last and ONNX channels-first. A value may exist in several *layouts*; layout `perm` means that axis i of
the ONNX tensor is axis ``perm[i]`` of the IR value. An IR `Transpose` is then nothing but another layout of its operand.
Constants, and what is dequantized or transposed from constants, have no layout of their own: they are written
on demand in the one that their reader wants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from qcompiler.ir.graph import Value
from qcompiler.ir.ops import Const, Dequantize, Transpose
from qcompiler.ir.types import DType, Quantization

Perm = tuple[int, ...]

OPSET, WIDE_OPSET = 20, 21
"""The second only for models that quantize to 16 bits, which the first does not know: older tools read the first."""
OLDEST_OPSET = 13
"""The first with scales per axis."""

WIDE = (DType.i16, DType.u16)
MICROSOFT = "com.microsoft"

CHANNELS_FIRST: Perm = (0, 3, 1, 2)
"""[N,H,W,C] as NCHW; also weights [O,kh,kw,I] as OIHW."""


def identity(v: Value) -> Perm:
    """The layout that is the IR's own axis order."""
    return tuple(range(v.type.rank))


def onnx_dtype(dtype: DType) -> int:
    """The ONNX element type number of `dtype`."""
    return int(helper.np_dtype_to_tensor_dtype(dtype.numpy))


def layout_free(v: Value) -> bool:
    """Whether `v` is written on demand in any layout: a constant, or one dequantized or transposed."""
    while isinstance(v.op, Dequantize | Transpose):
        v = v.inputs[0]
    return isinstance(v.op, Const)


def same_order(shape: Sequence[int], perm: Perm) -> bool:
    """Whether permuting an array of `shape` by `perm` leaves its elements in the same row-major order."""
    moved = [p for p in perm if shape[p] != 1]
    return moved == sorted(moved)


class Writer:
    """Nodes and initializers under construction; `reserved` names are never given to anything else."""

    def __init__(self, reserved: Sequence[str], opset: int | None = None) -> None:
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.domains: set[str] = set()
        self.opset = OPSET if opset is None else opset
        self._is_fixed = opset is not None
        self._taken = set(reserved)
        self._suffix: dict[str, int] = {}
        self._placed: dict[Value, dict[Perm, str]] = {}
        self._scalars: dict[tuple[str, bytes], str] = {}

    def fresh(self, base: str) -> str:
        """`base`, or `base` with a number where that name is taken."""
        name, n = base, self._suffix.get(base, 1)
        while name in self._taken:
            n += 1
            name = f"{base}_{n}"
        self._suffix[base] = n
        self._taken.add(name)
        return name

    def node(self, kind: str, inputs: Sequence[str], name: str, domain: str = "", skipped: int = 0, **attributes: Any) -> str:
        """Append a node with one result, `skipped` others before it that nothing reads; the result's ONNX name, made from `name`."""
        out = self.fresh(name)
        self.domains.add(domain)
        unread = [self.fresh(f"{name}_unread") for _ in range(skipped)]
        self.nodes.append(helper.make_node(kind, list(inputs), [*unread, out], name=out, domain=domain, **attributes))
        return out

    def tensor(self, data: NDArray[np.generic], name: str) -> str:
        """An initializer holding `data`."""
        out = self.fresh(name)
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(data).reshape(data.shape), out))
        return out

    def scalar(self, value: float, dtype: DType) -> str:
        """A rank-0 initializer; equal ones are shared."""
        data = np.asarray(value, dtype.numpy)
        key = (dtype.value, data.tobytes())
        if key not in self._scalars:
            self._scalars[key] = self.tensor(data, f"{dtype.name}_{value:.9g}")
        return self._scalars[key]

    def integers(self, values: Sequence[int], name: str) -> str:
        """A 1-D int64 initializer: shapes, axes, pads."""
        return self.tensor(np.asarray(values, np.int64).reshape(len(values)), name)

    def place(self, v: Value, name: str, perm: Perm) -> None:
        """Record that the ONNX tensor `name` is `v` in layout `perm`."""
        self._placed.setdefault(v, {}).setdefault(perm, name)

    def layouts(self, v: Value) -> Mapping[Perm, str]:
        """The layouts in which `v` exists so far, the first one written first."""
        return self._placed.get(v, {})

    def layout(self, v: Value) -> Perm:
        """The layout in which reading `v` costs nothing."""
        return next(iter(self.layouts(v)), identity(v))

    def read(self, v: Value, perm: Perm | None = None) -> str:
        """The name of `v` in layout `perm` (default: the one it has), transposed where it does not exist yet."""
        perm = self.layout(v) if perm is None else perm
        if perm not in self.layouts(v):
            self.place(v, self._on_demand(v, perm) if layout_free(v) else self._transposed(v, perm), perm)
        return self._placed[v][perm]

    def _transposed(self, v: Value, perm: Perm) -> str:
        have = self.layout(v)
        moved = self.node("Transpose", [self.read(v)], f"{v.name}_transposed", perm=[have.index(p) for p in perm])
        return self._stored(moved, v.inputs[0]) if isinstance(v.op, Dequantize) else moved

    def _stored(self, x: str, q: Value) -> str:
        """The tensor `x` between another pair of the quantization of `q`, as tools expect it around every operator."""
        quant = q.type.quant
        if quant is None or quant.axis is not None or q.type.dtype is DType.i32:
            return x
        affine, domain = self.affine(quant, q.type.dtype, x), self.quantizer_domain(q.type.dtype)
        stored = self.node("QuantizeLinear", [x, *affine], f"{x}_q", domain)
        return self.node("DequantizeLinear", [stored, *affine], f"{x}_dq", domain)

    def _on_demand(self, v: Value, perm: Perm) -> str:
        match v.op:
            case Const(data=data):
                return self.tensor(np.transpose(data, perm), v.name)
            case Transpose(perm=moved):
                return self.read(v.inputs[0], tuple(moved[p] for p in perm))
            case _:
                return self.dequantize(v.inputs[0], perm, v.name)

    def dequantize(self, q: Value, perm: Perm, name: str) -> str:
        """DequantizeLinear of `q` read in layout `perm`."""
        quant = q.type.quant
        assert quant is not None
        operands = [self.read(q, perm), *self.affine(quant, q.type.dtype, name)]
        return self.node("DequantizeLinear", operands, name, self.quantizer_domain(q.type.dtype), **axis_attribute(quant, perm))

    def quantizer_domain(self, dtype: DType) -> str:
        """Where QuantizeLinear of `dtype` is defined: 16 bits came late to ONNX itself."""
        return MICROSOFT if dtype in WIDE and self.opset < WIDE_OPSET else ""

    def affine(self, quant: Quantization, dtype: DType, name: str) -> list[str]:
        """Names of scale and zero point: rank 0 per tensor, else 1-D."""
        if dtype in WIDE and not self._is_fixed:
            self.opset = WIDE_OPSET
        if quant.axis is None:
            return [self.scalar(quant.scale[0], DType.f32), self.scalar(quant.zero_point[0], dtype)]
        scale, zero = np.array(quant.scale, np.float32), np.array(quant.zero_point, dtype.numpy)
        return [self.tensor(scale, f"{name}_scale"), self.tensor(zero, f"{name}_zero_point")]


def axis_attribute(quant: Quantization, perm: Perm) -> dict[str, Any]:
    """The `axis` attribute of QuantizeLinear and DequantizeLinear for an operand in layout `perm`."""
    return {} if quant.axis is None else {"axis": perm.index(quant.axis)}
