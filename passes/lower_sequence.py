"""Normalization, attention and rotary embedding in integers: their constants from scales and float parameters.

The arithmetic is that of `numerics.normalize` and `numerics.attention`. In rotary embedding cosines and sines are units of 2^-14:

    acc = (x - z) round(2^14 cos) + (x_partner - z) round(2^14 sin)        S_acc = S_x 2^-14
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qcompiler.ir import integer
from qcompiler.ir.graph import Value, apply
from qcompiler.ir.ops import constant
from qcompiler.ir.sequence import Attention, Normalize, Rotate
from qcompiler.ir.types import TensorType
from qcompiler.numerics import attention, normalize

from .requantization import NoIntegerForm, const_array, quant_of, requantized, scale_of

TURN_BITS = 14
HIDDEN = 800.0
"""Logits lowered by more than this are hidden: their exponentials are zero beside anything."""


def lower_sequence(x: Value, operands: Sequence[Value], y: TensorType, name: str) -> Value:
    """The integer form of the float value `x`, one of these three; float constants among its `operands` as they are."""
    match x.op:
        case Normalize():
            return _normalize(x.op, operands, y, name)
        case Attention():
            return _attention(x.op, operands, y, name)
        case Rotate():
            return _rotate(x.op, operands, y, name)
    raise NoIntegerForm(f"{type(x.op).__name__} '{name}' is no operator of transformers")


def _normalize(op: Normalize, operands: Sequence[Value], y: TensorType, name: str) -> Value:
    x, quant = operands[0], quant_of(y)
    gamma, beta = (const_array(p).astype(np.float64) for p in operands[1:])
    if len(gamma) > normalize.MAX_CHANNELS:
        raise NoIntegerForm(f"'{name}' normalizes {len(gamma)} channels; supported are {normalize.MAX_CHANNELS}")
    made = normalize.affine(gamma, beta, quant.scale[0], quant.zero_point[0])
    bits = 8 * x.type.dtype.numpy.itemsize
    epsilon = normalize.epsilon_term(op.epsilon, len(gamma), scale_of(x), bits)
    g, b = (constant(c.astype(np.int32), f"{name}.{what}") for c, what in ((made.g, "gamma"), (made.b, "beta")))
    return apply(integer.IntNormalize(y, op.centered, epsilon, made.shift), x, g, b, name=name)


def _attention(op: Attention, operands: Sequence[Value], y: TensorType, name: str) -> Value:
    q, k, v, *rest = operands
    if k.shape[1] > attention.MAX_POSITIONS:
        raise NoIntegerForm(f"Attention '{name}' over {k.shape[1]} positions; supported are {attention.MAX_POSITIONS}")
    logits = attention.logit_multiplier(scale_of(q) * scale_of(k) * abs(op.scale))
    values = attention.value_multiplier(scale_of(v), quant_of(y).scale[0])
    table = constant(exponentials(min(quant_of(o.type).bits for o in (q, k, v))), f"{name}.table")
    if op.bias:
        rest[0] = constant(bias_in_units(const_array(rest[0])), rest[0].name)
    made = integer.IntAttention(y, (logits.shift, logits.q), (values.shift, values.q), op.causal, op.bias, op.mask)
    return apply(made, q, k, v, table, *rest, name=name)


def exponentials(bits: int) -> NDArray[np.uint8]:
    """The table of attention whose operands have so many bits: below 8, as many levels as they have, evenly spaced in the logarithm.

    Evenly spaced in themselves they were worse on the vision transformers tried (docs/transformers.md).
    """
    return attention.exp_table() if bits >= 8 else attention.exp_table(bits)


def bias_in_units(bias: NDArray[np.generic]) -> NDArray[np.int16]:
    """Float logits in units of 1/40; what lies below -`HIDDEN` is `attention.MASKED`."""
    real = np.nan_to_num(bias.astype(np.float64), neginf=-1e30, posinf=1e30)
    units = np.clip(np.rint(real * attention.UNITS_PER_NAT), attention.MASKED + 1, -attention.MASKED - 1)
    return np.where(real < -HIDDEN, attention.MASKED, units).astype(np.int16)


def _rotate(op: Rotate, operands: Sequence[Value], y: TensorType, name: str) -> Value:
    x = operands[0]
    cos, sin = (constant(_turns(const_array(p)), p.name) for p in operands[1:])
    acc = apply(integer.IntRotate(op.partners), x, cos, sin, name=f"{name}.acc")
    return requantized(acc, scale_of(x) * 2.0**-TURN_BITS, y, name)


def _turns(values: NDArray[np.generic]) -> NDArray[np.int16]:
    return np.clip(np.rint(values.astype(np.float64) * (1 << TURN_BITS)), -(1 << 15), (1 << 15) - 1).astype(np.int16)
