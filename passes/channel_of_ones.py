"""A shift before a convolution that pads with zeros, as one channel more: homogeneous coordinates.

    conv(pad(s x + t), w) = conv(pad([x, ONE]), [s w, (sum_c t_c w_c) / ONE])

Outside of the image all channels are zero, so that the shift is added inside alone, as it was. Kernels read three channels as four anyway.
"""

from __future__ import annotations

import numpy as np

from qcompiler.ir.graph import Value, apply
from qcompiler.ir.ops import Conv, Pad, PadMode

from .constants import Floats, floats, same_dtype

FEW = 3
"""Channels beside which one more costs nothing, or little."""


def is_shiftable(v: Value) -> bool:
    """Whether `v` is a convolution that mixes few channels by constants."""
    constant = isinstance(v.op, Conv) and v.op.groups == 1 and all(floats(i) is not None for i in v.inputs[1:])
    return constant and v.inputs[1].shape[3] <= FEW


def shifted_conv(v: Value, x: Value, scale: Floats, shift: Floats, one: float) -> Value:
    """Convolution `v` (see `is_shiftable`) of `scale` * x + `shift`, vectors of a number per channel; `one` lies in the range of x.

    Where nothing is padded, or shifts cancel, no channel is added: the shift is part of the bias."""
    w, b = floats(v.inputs[1]), floats(v.inputs[2]) if len(v.inputs) > 2 else np.zeros(v.shape[3])
    assert isinstance(v.op, Conv)
    assert w is not None
    assert b is not None
    scaled, rest = w * scale, (w * shift).sum(-1)
    if any(map(any, v.op.pads)) and rest.any():
        x = apply(Pad(((0, 0),) * 3 + ((0, 1),), PadMode.constant, one), x, name=f"{x.name}.one")
        scaled, rest = np.concatenate([scaled, rest[..., None] / one], -1), np.zeros_like(rest)
    name = v.inputs[2].name if len(v.inputs) > 2 else f"{v.name}.bias"
    parts = same_dtype(scaled, v.inputs[1], v.inputs[1].name), same_dtype(b + rest.sum((1, 2)), v.inputs[1], name)
    return apply(v.op, x, *parts, name=v.name)
