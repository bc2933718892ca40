"""How long an action of the memory plan takes on one core, roughly: whether to divide it among threads is decided by this.

    ns = macs / (macs per ns of the dot product) + results / (results per ns of the epilogue) + bytes / (bytes per ns) + weights / (bytes per ns)

The rates of convolutions with `vpdpbusd` are a fit (non-negative least squares of relative errors) to 348 measured convolutions of seven networks on
Zen 4: nine in ten of the estimates are between 0.76 and 1.16 of what was measured. On other cores they are coarser. It decides how often pieces are
handed out, and no result.
"""

from __future__ import annotations

from math import prod

import numpy as np

from qcompiler.ir.graph import Value
from qcompiler.ir.integer import IntAttention, IntConv, IntMatMul, IntNormalize, IntResize, IntSoftmax, IntSumPool, Lookup
from qcompiler.ir.ops import ArgMax, Gather, MaxPool, Resize
from qcompiler.ir.types import DType
from qcompiler.passes.plan_memory import Action, Copy, Fill, Run

from .target import Target

MACS = {"vpdpbusd": 3.6, "maddubs": 1.6, "sdot": 1.7, "smull": 0.7}
"""Multiply-accumulates per nanosecond and byte of a vector register, by form of the dot product."""
WORDS = 0.5
"""What part of that 16-bit activations leave."""
DEPTHWISE = 0.8
"""What part of that a depthwise convolution reaches."""
ACTIVATIONS = 0.3
"""What part of it attention reaches: its operands are packed first, and no sum of 16 bits is proven."""
LOGITS = 0.04
"""Logits per nanosecond and byte of a register: requantize, exponential, sum."""
MATRIX = 0.14
"""What part of it a product of two activations reaches."""
RESULTS = 0.37
"""Results per nanosecond and byte of a register: bias, requantize, store."""
BYTES = 0.3
"""Bytes moved per nanosecond and byte of a register by kernels that do nothing else."""
OPERANDS = 1.0
"""Bytes of operands and results per nanosecond and byte of a register, beside computation."""
WEIGHTS = 0.55
"""Bytes of weights, which come from a farther cache, likewise."""
SCALAR = 1.5
"""Nanoseconds per element of what is not vectorized."""
ROW = 6.0
"""Nanoseconds per row of a normalization, whatever its length: exponent and reciprocal root."""
CONVERTED = 0.025
"""Elements quantized or dequantized per nanosecond and byte of a register."""


def nanoseconds(action: Action, target: Target) -> float:
    """The time of `action`."""
    match action:
        case Run():
            return _run(action, target)
        case Copy():
            elements = prod(action.shape)
            return elements / (BYTES * target.vector_bytes / (1 if action.source.strides[-1:] == action.target.strides[-1:] else 4))
        case Fill():
            return prod(action.shape) / (BYTES * target.vector_bytes)


def conversion(elements: int, target: Target) -> float:
    """The time to quantize or dequantize so many numbers."""
    return elements / (CONVERTED * target.vector_bytes)


def _run(run: Run, target: Target) -> float:
    v, result = run.step.producer, run.step.result
    if isinstance(v.op, (IntSoftmax, ArgMax)) or (isinstance(v.op, Lookup) and v.inputs[1].type.rank > 1):
        return SCALAR * 3 * v.inputs[0].type.size
    read = sum(x.type.nbytes for x in run.step.operands)
    weights = v.inputs[1].type.nbytes if isinstance(v.op, IntConv) else 0
    bytes_per_ns = (OPERANDS if isinstance(v.op, IntConv) else BYTES) * target.vector_bytes
    moved = (read + result.type.nbytes) / bytes_per_ns + weights / (WEIGHTS * target.vector_bytes)
    return _macs(v, target) + result.type.size / (RESULTS * target.vector_bytes) + moved


def _macs(v: Value, target: Target) -> float:
    rate = MACS.get(target.dot, 1.0) * target.vector_bytes
    match v.op:
        case IntConv(groups=groups):
            depthwise = groups > 1 and groups == v.inputs[1].shape[0]
            wide = v.inputs[0].type.dtype is DType.i16
            return v.type.size * int(np.prod(v.inputs[1].shape[1:])) / (rate * (DEPTHWISE if depthwise else WORDS if wide else 1.0))
        case IntAttention():
            (b, n, h, d), m, e = v.inputs[0].shape, v.inputs[1].shape[1], v.shape[3]
            seen = b * n * h * m / (2 if v.op.causal else 1)
            return seen * ((d + e) / (rate * ACTIVATIONS) + 1 / (LOGITS * target.vector_bytes))
        case IntMatMul():
            return v.type.size * v.inputs[0].shape[-1] / (rate * MATRIX)
        case IntNormalize():
            return ROW * (v.type.size // max(v.shape[-1], 1))
        case MaxPool(kernel=kernel) | IntSumPool(kernel=kernel):
            return v.type.size * prod(kernel) / (BYTES * target.vector_bytes)
        case IntResize() | Resize() | Gather():
            return v.type.size * 4 / (BYTES * target.vector_bytes)
    return 0.0
