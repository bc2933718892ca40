"""From a depthwise `IntConv` step to the configuration and the packed constants of its kernel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from qcompiler.backends.llvm.chains import all_unsigned
from qcompiler.backends.llvm.dot import GROUP, Chained
from qcompiler.backends.llvm.epilogue import Epilogue, EpilogueData
from qcompiler.backends.llvm.launch import Argument, Data, Launch
from qcompiler.backends.llvm.reach import Loop, Reach
from qcompiler.backends.llvm.target import Target
from qcompiler.ir.ops import const_data
from qcompiler.passes.plan_memory import Run

from .conv import PARAMETERS, Steps
from .conv_plan import ConvShape, arguments, conv_shape, epilogue_of, walked
from .depthwise import COUNT, MAX_TAPS, MOST_TAPS, DepthwiseConfig, choose, emit_depthwise, pack_weights, split_axis, tap_groups, widths


def plan_depthwise(run: Run, target: Target) -> Iterable[Launch]:
    """Convolutions with one kernel per channel."""
    shape = conv_shape(run)
    epilogue, data = epilogue_of(run, target)
    config = depthwise_config(shape, epilogue, target)
    w = const_data(run.step.producer.inputs[1])
    assert w is not None
    w = w.astype(np.int8)[..., 0]
    config = replace(config, signed=not _unsigned(w, config, target))
    if not config.signed:
        data = replace(data, bias=data.bias - 128 * w.astype(np.int64).sum((1, 2)))
    weights = pack_weights(w, config, target)
    given = arguments(run, shape, Data(weights), _constants(data, config, target), data.tables)
    yield Launch(emit_depthwise, config, PARAMETERS, given, run.step.result.name, _reach(config, target, given))


def _reach(config: DepthwiseConfig, target: Target, given: Sequence[Argument]) -> Reach | None:
    if config.images > 1 or config.rows == 1 or split_axis(config, target) != "rows":
        return None
    below, right = config.tap
    taps = max(i * below + j * right for group in config.groups for i, j in group)
    window = taps + (config.window_rows - 1) * below + config.channels * config.itemsize
    return walked([Loop(config.rows, 1, config.rows)], config, window, given)


def _unsigned(w: NDArray[np.int8], config: DepthwiseConfig, target: Target) -> bool:
    """Whether the weights [C, kh, kw] allow products with x + 128, which need no sign."""
    dot = config.dot(target)
    return isinstance(dot, Chained) and all_unsigned(tap_groups(w, config).transpose(3, 0, 1, 2).reshape(len(w), -1, GROUP), dot)


def _constants(data: EpilogueData, config: DepthwiseConfig, target: Target) -> bytes:
    return b"".join(data.pack(target.narrowed(bits), COUNT, n, start) for start, n, bits in widths(config.channels, target))


def depthwise_config(shape: ConvShape, epilogue: Epilogue, target: Target) -> DepthwiseConfig:
    """The kernel's configuration, grouping of taps and tile chosen."""
    (n, h, w, _), (dh, dw), (sh, sw) = shape.x_strides, shape.op.dilations, shape.op.strides
    kh, kw = shape.w[1:3]
    looped = kh * kw > MAX_TAPS
    groups, tile = choose((1 if looped else kh, kw), shape.out[2], sw, dw, target.registers, MOST_TAPS // shape.itemsize)
    o, r = shape.out_strides, shape.residual_strides
    return DepthwiseConfig(
        shape.out[0],
        shape.out[1],
        shape.out[2],
        shape.out[3],
        kh if looped else 1,
        groups,
        (dh * h, dw * w),
        tile,
        Steps(n, h * sh, w * sw),
        Steps(o[0], o[1], o[2]),
        Steps(r[0], r[1], r[2]) if r else None,
        epilogue,
        bits=shape.bits,
    )
