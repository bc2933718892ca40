"""From a float graph to the Q/DQ graph: every stored activation x becomes Dequantize(Quantize(x)), every weight Dequantize(Const).

All numbers that decide the program are chosen here: scales and zero points of activations (given), of weights and biases
(`quantize_weights`). Where a graph already holds Quantize/Dequantize, they are kept exactly and only the rest is filled in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from qcompiler.ir.graph import Declined, Graph, Value, apply
from qcompiler.ir.ops import Cast, Concat, Const, Conv, CountSteps, Dequantize, Input, MatMul, Quantize, Softmax, constant
from qcompiler.ir.pointwise import Add, Binary, Clip, PRelu
from qcompiler.ir.types import DType, Quantization, TensorType, quantized

from .quantize_weights import QuantizedWeights, quantize_weights
from .residuals import Residual, fine_quantization, fine_streams, is_exact, residuals
from .scheme import PLAIN, Scheme
from .storage_points import is_movement, is_stored, sharing_groups
from .weight_grid import Grouping, has_groups

SOFTMAX = Quantization.per_tensor(1 / 256, -128)
"""The quantization of probabilities, fixed: scale 1/256 reaches [0, 255/256]."""
SYMMETRIC_SOFTMAX = Quantization.per_tensor(1 / 128)
"""The same without a zero point."""


COARSER = 4.0
"""What is joined with values of so much greater range is rescaled, a pass over it, rather than lose two bits for all its readers."""


def fixed_quantization(v: Value, scheme: Scheme = PLAIN) -> Quantization | None:
    """The quantization that a value has by its nature, whatever the data: that of probabilities, and of integers as numbers."""
    match v.op:
        case CountSteps(zero_point=zero):
            return Quantization.per_tensor(1.0, zero)
        case _ if scheme.bits > 8:
            return None
        case _ if (given := scheme.result(v)) is not None:
            return given
        case Softmax(log=False):
            return SYMMETRIC_SOFTMAX if scheme.symmetric else SOFTMAX
        case Cast() if v.inputs[0].type.dtype is DType.u8 and scheme.symmetric:
            return None
        case Cast() if v.inputs[0].type.dtype is DType.u8:
            return Quantization.per_tensor(1.0, -128)
        case Cast() if not v.inputs[0].type.dtype.is_float:
            return Quantization.per_tensor(1.0)
    return None


def share(
    graph: Graph,
    chosen: Mapping[Value, Quantization],
    together: Iterable[tuple[Value, Value]] = (),
    scheme: Scheme = PLAIN,
    given: Mapping[Value, Quantization] = MappingProxyType({}),
) -> dict[Value, Quantization]:
    """One quantization per sharing group (see `sharing_groups`): it covers the ranges chosen for all members, or is that which one has `given`.

    `chosen` may lack members that only move elements. ValueError where a group has no choice at all.
    """
    result: dict[Value, Quantization] = {}
    for group in sharing_groups(graph, lambda v, operand: _is_rescaled(graph, chosen, v, operand), together):
        known = [q for v in group if (q := fixed_quantization(v, scheme) or _given(v) or chosen.get(v)) is not None]
        if not known:
            raise ValueError(f"no range is known for '{group[0].name}'")
        known = [given[v] for v in group if v in given] or known
        common = known[0] if len(set(known)) == 1 else _union(known, scheme)
        result |= dict.fromkeys(group, common)
    return result


def _is_rescaled(graph: Graph, chosen: Mapping[Value, Quantization], v: Value, operand: Value) -> bool:
    """Whether `operand` of the concatenation `v` keeps a scale of its own, being `COARSER` times finer and seen elsewhere too:
    by another reader, or before it was moved."""
    seen = len(graph.uses[operand]) > 1 or operand in graph.outputs or is_movement(operand)
    if not (isinstance(v.op, Concat) and seen and v in chosen and operand in chosen):
        return False
    return chosen[operand].scale[0] * COARSER < chosen[v].scale[0]


def _given(v: Value) -> Quantization | None:
    """What the model itself says of an operand that is moved: the quantization of a Dequantize before `v`."""
    operands = [i.inputs[0].type.quant for i in v.inputs if isinstance(i.op, Dequantize)]
    return operands[0] if operands and is_movement(v) else None


def _union(known: list[Quantization], scheme: Scheme) -> Quantization:
    if coded := [q for q in known if q.levels is not None]:
        return coded[0]  # the others move what the table gives
    if max(q.bits for q in known) > 8 and scheme.bits == 8:
        return max(known, key=lambda q: (q.bits, q.scale))
    lo = min(q.scale[0] * (q.qmin - q.zero_point[0]) for q in known)
    hi = max(q.scale[0] * (q.qmax - q.zero_point[0]) for q in known)
    bits = max(q.bits for q in known)
    levels, qmin = (1 << bits) - 1, -(1 << (bits - 1))
    scale = scheme.step(float(np.float32((hi - lo) / levels)))
    if scheme.symmetric:
        return Quantization.per_tensor(scale, 0, bits)
    return Quantization.per_tensor(scale, int(np.clip(round(qmin - lo / scale), qmin, qmin + levels)), bits)


@dataclass
class _Inserter:
    graph: Graph
    quant: Mapping[Value, Quantization]
    means: Mapping[Value, NDArray[np.floating]]
    covariances: Mapping[Value, NDArray[np.float64]]
    declined: Declined
    spell_out: bool
    widths: Mapping[Value, int]
    scheme: Scheme = PLAIN
    stored_errors: Mapping[Value, NDArray[np.floating]] | None = None
    weight_groups: bool = False
    rounded: Mapping[Value, QuantizedWeights] | None = None

    def __post_init__(self) -> None:
        candidates = residuals(self.graph)
        self.residuals: dict[Value, Residual] = {}
        self.hosts = {v: r for v, r in candidates.items() if self._is_exact(v, r)}
        self.residuals = {v: r for v, r in candidates.items() if v in self.hosts or self._is_wide_sum(r)}
        for v, r in candidates.items():
            if v not in self.residuals:
                self.declined(v, f"'{r.addition.name}' is not added in the accumulator: its other operand's scale is too fine beside the weights'")
        allowed = self.scheme.streams and self.scheme.bits == 8 and not self.spell_out
        self.fine = fine_streams(self.graph, self.hosts, self.quant) if allowed else frozenset[Value]()
        self.streams: dict[Value, Value] = {}
        self.added = {r.addition: r.other for r in self.residuals.values()}

    def _is_exact(self, v: Value, r: Residual) -> bool:
        """Whether the convolution `v` adds in its accumulator."""
        x, other = self._quantization(v.inputs[0]), self._quantization(r.other)
        return x is not None and other is not None and max(x.bits, other.bits) <= 8 and is_exact(v, x, other)

    def _is_wide_sum(self, r: Residual) -> bool:
        """Whether the operands of an addition are requantized to its 16 bits, and added then."""
        result = self._result(r.addition)
        return result is not None and result.bits > 8

    def _quantization(self, v: Value) -> Quantization | None:
        return v.inputs[0].type.quant if isinstance(v.op, Dequantize) else self.quant.get(v)

    def run(self) -> Graph:
        new: dict[Value, Value] = {}
        for v in self.graph.order:
            new[v] = self._stored(v, self._rebuilt(v, new))
        g = self.graph
        inputs = tuple(_source(new[v]) for v in g.inputs)
        return Graph(inputs, tuple(new[v] for v in g.outputs), g.output_names)

    def _stored(self, old: Value, v: Value) -> Value:
        if not is_stored(self.graph, old) or (old in self.residuals and not self.spell_out):
            return v
        if old in self.fine:
            v = self.streams[old] = _stored_as(v, fine_quantization(self.quant[old]), f"{v.name}.fine")
        return _stored_as(v, self.quant[old], old.name)

    def _rebuilt(self, v: Value, new: Mapping[Value, Value]) -> Value:
        inputs = [self.streams.get(i, new[i]) if self.added.get(v) is i else new[i] for i in v.inputs]
        if isinstance(v.op, Conv):
            inputs = self._conv_operands(v, inputs)
        elif _reads_constants(v) and not self._is_wide(v):
            inputs = [quantized_constant(i, self.scheme) if _is_float_const(i) else i for i in inputs]
        return v if all(a is b for a, b in zip(inputs, v.inputs)) else replace(v, inputs=tuple(inputs))

    def _is_wide(self, v: Value) -> bool:
        """Whether constants that `v` reads are rounded to 16 bits, to its own scale, when it is lowered."""
        quant = self.quant.get(v)
        return isinstance(v.op, (Add, Concat)) and quant is not None and quant.bits > self.scheme.bits

    def _conv_operands(self, v: Value, inputs: list[Value]) -> list[Value]:
        x, w = inputs[0], inputs[1]
        bias = inputs[2] if len(inputs) > 2 else None
        xq = x.inputs[0].type.quant if isinstance(x.op, Dequantize) else None
        if xq is None or not isinstance(w.op, Const):
            return inputs
        bias_data = None if bias is None or not isinstance(bias.op, Const) else bias.op.data
        residual = self._quantization(self.hosts[v].other) if v in self.hosts else None
        mean, covariance = self.means.get(v.inputs[0]), self.covariances.get(v)
        error = (self.stored_errors or {}).get(v.inputs[0])
        made = (self.rounded or {}).get(v) or quantize_weights(
            w.op.data,
            bias_data,
            xq,
            self._result(v),
            mean,
            residual,
            covariance,
            self.widths.get(v, 8),
            self.scheme,
            error,
            _grouping(v, self.weight_groups, self.widths.get(v, 8)),
        )
        for channel in made.raised:
            self.declined(v, f"the weight scale of output channel {channel} was raised so that bias and accumulator fit")
        wq = TensorType(w.shape, DType.i8, self._of_channels(made.scale, made.bits))
        bq = TensorType(made.bias.shape, DType.i32, self._of_channels(made.scale * xq.scale[0], 32))
        name = bias.name if bias is not None else f"{v.name}.bias"
        return [x, _dequantized(made.weights, wq, w.name), _dequantized(made.bias, bq, name)]

    def _of_channels(self, scale: NDArray[np.float64], bits: int) -> Quantization:
        if self.scheme.per_channel:
            return Quantization(tuple(scale.tolist()), (0,) * len(scale), axis=0, bits=bits)
        return Quantization.per_tensor(float(scale[0]), 0, bits)

    def _result(self, v: Value) -> Quantization | None:
        if v in self.residuals:
            return self._result(self.residuals[v].addition)
        user = self.graph.only_use(v)
        stored = user if user is not None and isinstance(user.op, Clip) else v
        if user is not None and isinstance(user.op, Quantize):
            return user.op.type.quant
        return self.quant.get(stored)


def _grouping(v: Value, weight_groups: bool, bits: int) -> Grouping:
    """How the weights of the convolution `v` share scales where they have so few bits."""
    assert isinstance(v.op, Conv)
    if v.op.groups > 1:
        return Grouping.shifted if v.inputs[1].shape[3] == 1 else Grouping.none
    return Grouping.multiplied if weight_groups and has_groups(v.inputs[1].shape, v.type.size // v.shape[-1], bits) else Grouping.none


def _source(v: Value) -> Value:
    while not isinstance(v.op, Input):
        v = v.inputs[0]
    return v


def _stored_as(v: Value, quant: Quantization, name: str) -> Value:
    return apply(Dequantize(), apply(Quantize(quantized(v.shape, quant)), v, name=name), name=name)


def _dequantized(data: NDArray[np.integer], type: TensorType, name: str) -> Value:
    return apply(Dequantize(), constant(data, name, type), name=name)


def _is_float_const(v: Value) -> bool:
    return isinstance(v.op, Const) and v.type.dtype.is_float


def _reads_constants(v: Value) -> bool:
    """Whether constant operands of `v` take part in integer arithmetic, element by element (slopes become tables)."""
    return isinstance(v.op, (Binary, MatMul, Concat)) and not isinstance(v.op, PRelu)


def quantized_constant(v: Value, scheme: Scheme = PLAIN) -> Value:
    """A float constant as Dequantize(integer constant), symmetric; a scalar is exact, but for the steps of powers of two."""
    assert isinstance(v.op, Const)
    data = v.op.data.astype(np.float64)
    reach = float(np.abs(data).max()) if data.size else 0.0
    greatest = (1 << (scheme.bits - 1)) - 1
    quant = Quantization.per_tensor(scheme.step(reach / greatest) if reach > 0 else 1.0, 0, scheme.bits)
    type = quantized(v.shape, quant)
    return _dequantized(quant.quantize(data).astype(type.dtype.numpy), type, v.name)


def insert_qdq(
    graph: Graph,
    quantization: Mapping[Value, Quantization],
    means: Mapping[Value, NDArray[np.floating]] | None = None,
    declined: Declined | None = None,
    spell_out: bool = False,
    covariances: Mapping[Value, NDArray[np.float64]] | None = None,
    widths: Mapping[Value, int] | None = None,
    scheme: Scheme = PLAIN,
    stored_errors: Mapping[Value, NDArray[np.floating]] | None = None,
    weight_groups: bool = False,
    spelled: Mapping[Value, Quantization] | None = None,
    rounded: Mapping[Value, QuantizedWeights] | None = None,
) -> Graph:
    """The Q/DQ graph. `quantization` holds every stored value (see `share`); `means`, E[x] per channel of the last axis, corrects biases,
    and so do `stored_errors` (E[Q(x) - x]).

    A convolution whose residual is added in the accumulator is not quantized itself; `spell_out` quantizes it all the same,
    for tools that know only operators between tensors of 8 bits, and so knows no fine streams; `spelled` replaces what only kernels here can read.
    `covariances` of the inputs of convolutions make rounding of second order;
    `widths` are the bits of convolutions' weights, 8 where not given; those of few bits share multipliers with `weight_groups`.
    Layers that are in `rounded` have these.
    """
    reasons = declined if declined is not None else Declined()
    stored = {**quantization, **(spelled or {})} if spell_out else quantization
    return _Inserter(
        graph, stored, means or {}, covariances or {}, reasons, spell_out, widths or {}, scheme, stored_errors, weight_groups, rounded
    ).run()
