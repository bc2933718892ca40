"""What the compiler did, layer by layer, as plain data for people, JSON and tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .backends import reference
from .ir.graph import Graph, Value
from .ir.integer import IntAttention, IntConv, IntMatMul, IntReduceSum, IntRotate, IntSumPool
from .ir.interpret import evaluate
from .ir.ops import Const, Dequantize
from .passes.partition import Step
from .passes.pipeline import Quantized
from .passes.storage_points import MOVEMENT
from .passes.weight_grid import information

Feeds = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Layer:
    """One kernel of the program. `fused` are the operators in its epilogue; `bound` is proven for every partial sum of its
    accumulators (below 2^31); `weight_bits` and `operand_bits` are those of what it multiplies (narrow activations are stored one to a
    byte, and so are weights of depthwise kernels), `levels` the number of integers in a codebook,
    `wide` says why the result has 16 bits; `sqnr` is the signal to quantization noise ratio in dB against the float network, on the
    samples that the compiler looked at (None: not measured, or without noise)."""

    name: str
    operator: str
    fused: tuple[str, ...]
    shape: tuple[int, ...]
    bits: int | None
    scale: float | None
    zero_point: int | None
    bound: int | None
    headroom_bits: float | None
    sqnr: float | None
    weight_bytes: int
    macs: int
    weight_bits: int | None = None
    operand_bits: int | None = None
    levels: int | None = None
    wide: str | None = None


@dataclass(frozen=True)
class Report:
    """All layers in execution order, and why things were not done: (value, reason)."""

    layers: tuple[Layer, ...]
    declined: tuple[tuple[str, str], ...]
    source: str | None = None
    """The file of the float network, where it was one."""
    reparameterized: tuple[str, ...] = ()
    """Normalizations whose channels were evened; of the others `declined` says why not."""
    distilled: tuple[float, float] | None = None
    """Where weights were tuned to the answers of the float network: the loss in nats on samples held out until half-way, before and then."""

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one inference."""
        return sum(layer.macs for layer in self.layers)

    @property
    def weight_bytes(self) -> int:
        """Bytes of constants."""
        return sum(layer.weight_bytes for layer in self.layers)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {"macs": self.macs, "weight_bytes": self.weight_bytes}


def build_report(quantized: Quantized, steps: Sequence[Step], samples: Sequence[Feeds] = (), source: str | None = None) -> Report:
    """The report of a program whose kernels are `steps`; errors are measured on `samples` (none: not measured)."""
    noise = signal_to_noise(quantized.float_graph, quantized.integer_graph, [s.result for s in steps], samples)
    layers = tuple(_layer(s, quantized, noise.get(s.result)) for s in steps)
    found = quantized.distilled
    return Report(
        layers, tuple(quantized.declined.reasons), source, quantized.reparameterized, None if found is None else (found.before, found.after)
    )


def _layer(step: Step, quantized: Quantized, noise: float | None) -> Layer:
    bounds = quantized.bounds
    result, quant = step.result, step.result.type.quant
    reach = max((bounds[v].reach for v in step.values if v in bounds), default=None)
    return Layer(
        name=result.name,
        operator=describe(step.producer),
        fused=tuple(type(v.op).__name__ for v in step.epilogue),
        shape=result.shape,
        bits=None if quant is None else quant.bits,
        scale=None if quant is None else quant.scale[0],
        zero_point=None if quant is None else quant.zero_point[0],
        bound=reach,
        headroom_bits=None if reach is None else round(31 - float(np.log2(max(reach, 1))), 2),
        sqnr=noise,
        weight_bytes=sum(i.type.nbytes for v in step.values for i in v.inputs if isinstance(i.op, Const)),
        macs=macs(step.producer),
        weight_bits=_weight_bits(step.producer),
        operand_bits=_bits(multiplied(step.producer)),
        levels=None if quant is None or quant.levels is None else len(quant.levels),
        wide=why_wide(quantized.integer_graph, result),
    )


def _weight_bits(v: Value) -> int | None:
    """Of the convolution `v`; multiples of few integers are those."""
    bits = _bits(v.inputs[1:2]) if isinstance(v.op, IntConv) else None
    if bits is None or not isinstance(v.op, IntConv) or not isinstance(v.inputs[1].op, Const):
        return bits
    return information(v.inputs[1].op.data, bits, v.op.groups)


def _bits(values: Sequence[Value]) -> int | None:
    """The fewest bits of information in any of `values`: 16 levels are 4."""
    quants = [v.type.quant for v in values if v.type.quant is not None]
    return min((q.bits if q.levels is None else (len(q.levels) - 1).bit_length() for q in quants), default=None)


def multiplied(v: Value) -> Sequence[Value]:
    """The activations whose products `v` sums."""
    count = {IntConv: 1, IntMatMul: 2, IntAttention: 3}.get(type(v.op), 0)
    return v.inputs[:count]


def why_wide(graph: Graph, v: Value) -> str | None:
    """Why `v` has 16 bits, where it has."""
    if v.type.quant is None or v.type.quant.bits <= 8:
        return None
    readers = graph.uses[v]
    if v in graph.outputs or any(u in graph.outputs for u in readers if isinstance(u.op, Dequantize)):
        return "output of the network"
    if any(isinstance(u.op, IntRotate) for u in readers):
        return "read by a rotary embedding"
    if any(isinstance(u.op, (IntConv, IntReduceSum, IntSumPool)) and u.inputs[0] is v for u in readers):
        return "read by a layer in 16 bits"
    moved = next((u for u in readers if isinstance(u.op, MOVEMENT)), None)
    return "residual stream" if moved is None else why_wide(graph, moved)


def describe(v: Value) -> str:
    """The operator of `v` for people: kind, kernel size, stride, groups."""
    if not isinstance(v.op, IntConv):
        return type(v.op).__name__
    (kh, kw), (sh, sw) = v.inputs[1].shape[1:3], v.op.strides
    parts = [f"IntConv {kh}x{kw}", f"/{sh}" if sh > 1 or sw > 1 else "", f" groups {v.op.groups}" if v.op.groups > 1 else ""]
    return "".join(parts)


def macs(v: Value) -> int:
    """Multiply-accumulates of one execution of `v`."""
    match v.op:
        case IntConv():
            return v.type.size * int(np.prod(v.inputs[1].shape[1:]))
        case IntAttention():
            (b, n, h, d), m = v.inputs[0].shape, v.inputs[1].shape[1]
            return b * n * h * m * (d + v.shape[3])
        case IntMatMul():
            return v.type.size * v.inputs[0].shape[-1]
    return 0


def signal_to_noise(float_graph: Graph, integer_graph: Graph, values: Sequence[Value], samples: Sequence[Feeds]) -> dict[Value, float]:
    """10 log10(sum x^2 / sum (x - x_q)^2) of each integer value that has a float counterpart of the same name and shape.

    Values without signal or without noise have no ratio."""
    twins = {v.name: v for v in float_graph.order}
    pairs = [(v, twins[v.name]) for v in values if v.type.quant is not None and v.name in twins and twins[v.name].shape == v.shape]
    power, noise = dict.fromkeys((v for v, _ in pairs), 0.0), dict.fromkeys((v for v, _ in pairs), 0.0)
    for feeds in samples:
        real = evaluate(float_graph, feeds, [f for _, f in pairs])
        integers = reference.run_values(integer_graph, feeds, [v for v, _ in pairs])
        for v, f in pairs:
            assert v.type.quant is not None
            x = np.asarray(real[f], np.float64)
            power[v] += float((x**2).sum())
            noise[v] += float(((x - v.type.quant.dequantize(integers[v])) ** 2).sum())
    return {v: round(10 * float(np.log10(power[v] / noise[v])), 2) for v, _ in pairs if power[v] and noise[v]}


def history(graph_by_stage: Mapping[str, Graph], name: str) -> Iterator[tuple[str, Value]]:
    """(stage, value) of everything called `name`, stage by stage."""
    for stage, graph in graph_by_stage.items():
        yield from ((stage, v) for v in graph.order if v.name == name or v.name.startswith(f"{name}."))
