"""From an `IntConv` step to the configuration and the packed constants of its kernel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qcompiler.backends.llvm import nibbles
from qcompiler.backends.llvm.dot import Chained, dot_of, form_named, forms_for
from qcompiler.backends.llvm.epilogue import Epilogue, EpilogueData, addend_offset, bits_of, describe
from qcompiler.backends.llvm.launch import Address, Argument, Data, Launch, Nothing
from qcompiler.backends.llvm.reach import Loop, Reach, reach
from qcompiler.backends.llvm.target import Target
from qcompiler.ir.graph import Value
from qcompiler.ir.integer import IntConv
from qcompiler.ir.ops import const_data
from qcompiler.passes.plan_memory import Run

from .chain_plan import chained, expected_dot
from .conv import MEMORY, PARAMETERS, ConvConfig, Steps, emit_conv, loops_of, pack_weights, starts
from .depthwise import DepthwiseConfig
from .tiles import Problem, choose_segments, cycles
from .tuned import segments_of
from .unpack import Part, kept_bits, pack_parts


@dataclass(frozen=True)
class ConvShape:
    """A convolution with its operands' strides in bytes, before any choice of kernel."""

    op: IntConv
    x: tuple[int, ...]
    w: tuple[int, ...]
    out: tuple[int, ...]
    x_strides: tuple[int, ...]
    out_strides: tuple[int, ...]
    residual_strides: tuple[int, ...] | None
    bits: int = 8
    """Of the elements of x."""

    @property
    def itemsize(self) -> int:
        """Bytes of an element of x."""
        return self.bits // 8

    @property
    def first(self) -> int:
        """Bytes from element 0 of x to the first element of the first window."""
        return -self.op.pads[0][0] * self.x_strides[1] - self.op.pads[1][0] * self.x_strides[2]


def is_depthwise(v: Value) -> bool:
    """Whether every channel of the convolution `v` has its own kernel and result."""
    assert isinstance(v.op, IntConv)
    return v.op.groups == v.inputs[0].shape[3] == v.shape[3] and v.op.groups > 1


def conv_shape(run: Run) -> ConvShape:
    """The shape of a step that starts with an `IntConv`."""
    v = run.step.producer
    assert isinstance(v.op, IntConv)
    residual = run.operands[-1].strides if run.step.residual is not None else None
    x, strides = v.inputs[0], (run.operands[0].strides, run.result.strides, residual)
    return ConvShape(v.op, x.shape, v.inputs[1].shape, v.shape, *strides, bits_of(x))


def corrected_bias(v: Value, target: Target) -> NDArray[np.int64]:
    """The bias as the kernel wants it: less 128 * sum(w) where the dot product is of x + 128, of 8 bits; wraps modulo 2^32."""
    w, b = (const_data(i) for i in v.inputs[1:3])
    assert w is not None
    assert b is not None
    sums = w.astype(np.int64).reshape(w.shape[0], -1).sum(1)
    offset = dot_of(target).offset if bits_of(v.inputs[0]) == 8 else 0
    return np.asarray(b.astype(np.int64) - offset * sums)


def epilogue_of(run: Run, target: Target) -> tuple[Epilogue, EpilogueData]:
    """Epilogue of a convolution's step, told how its result and residual are stored."""
    v = run.step.producer
    epilogue, data = describe(run.step.epilogue, corrected_bias(v, target), v)
    if len(v.inputs) > 3:
        multipliers = const_data(v.inputs[4])
        assert multipliers is not None
        data = replace(data, bias=data.bias - addend_offset(target, epilogue.residual_bits) * multipliers.astype(np.int64).reshape(-1))
    stored = bool(target.storage_offset)
    return replace(epilogue, stored=stored and run.result.in_arena, residual_stored=stored and run.operands[-1].in_arena), data


def plan_conv(run: Run, target: Target) -> Iterable[Launch]:
    """Dense and grouped convolutions."""
    shape = conv_shape(run)
    epilogue, data = epilogue_of(run, target)
    w = _in_runs(shape, run.step.producer)
    narrow = _narrow(run, shape, w)
    config = conv_config(shape, epilogue, target, w, narrow)
    if isinstance(config.dot, Chained):
        found = chained(w, config, target)
        config, weights = found.config, found.packed
        data = replace(data, bias=data.bias - 128 * found.unsigned_sums)
    else:
        weights = pack_weights(w, config, target)
    memory = dict[str, Argument]()
    if run.scratch is not None:
        config = replace(config, parts=parts_of(config, _weights(run.step.producer)))
        weights = pack_parts(weights, config.parts, target)
        memory[MEMORY] = Address.of(run.scratch)
    given = arguments(run, shape, Data(weights), pack_constants(data, config, target), data.tables)
    parameters = (*PARAMETERS, *memory)
    yield Launch(emit_conv, config, parameters, (*given, *memory.values()), run.step.result.name, _reach(config, shape, given))


def parts_of(config: ConvConfig, w: NDArray[np.generic]) -> tuple[Part, ...]:
    """How the weights `w` [O, kh, kw, C] of `config` lie before they are taken apart."""
    bits = kept_bits(w)
    return tuple(Part(s.blocks, config.depth, s.count * config.dot.spread, len(s.forms), config.form, bits) for s in config.segments)


def _narrow(run: Run, shape: ConvShape, w: NDArray[np.int8]) -> bool:
    """Whether weights may lie two in a byte."""
    return run.scratch is None and shape.bits == 8 and nibbles.fit(w)


def _reach(config: ConvConfig, shape: ConvShape, given: Sequence[Argument]) -> Reach | None:
    """What is read to be multiplied by zero, behind a run, does not count."""
    loops = loops_of(config)
    if loops is None:
        return None
    window = sum((n - 1) * step for n, step in config.runs) + _run_length(shape) * shape.itemsize
    return walked(loops, config, window, given)


def walked(loops: Sequence[Loop], config: ConvConfig | DepthwiseConfig, window: int, given: Sequence[Argument]) -> Reach | None:
    """What pieces touch of x, residual and result: positions are rows, or pixels where there is one row."""

    def walk(steps: Steps, nbytes: int) -> tuple[int, int]:
        return (steps.column, nbytes) if config.rows == 1 else (steps.row, (config.columns - 1) * steps.column + nbytes)

    e, channels = config.epilogue, config.channels
    reads = [(given[0], *walk(config.x, window))]
    if config.residual is not None:
        reads.append((given[1], *walk(config.residual, channels * e.residual_bits // 8)))
    return reach(loops, reads, (given[-1], *walk(config.out, channels * e.itemsize)))


def arguments(run: Run, shape: ConvShape, weights: Argument, constants: bytes, tables: bytes) -> tuple[Argument, ...]:
    """Arguments in the order of `PARAMETERS`."""
    residual: Argument = Address.of(run.operands[-1]) if run.step.residual is not None else Nothing()
    return (
        Address.of(run.operands[0], shape.first),
        residual,
        weights,
        Data(constants),
        Data(tables) if tables else Nothing(),
        Address.of(run.result),
    )


def pack_constants(data: EpilogueData, config: ConvConfig, target: Target) -> bytes:
    """Constants of all blocks, group after group, segment after segment."""
    pieces = list[bytes]()
    for g in range(config.groups):
        for start, s in starts(config.segments, target):
            channels = min(s.blocks * s.count * target.lanes, config.channels - start)
            pieces.append(data.pack(target, s.count, channels, g * config.channels + start))
    return b"".join(pieces)


def conv_config(shape: ConvShape, epilogue: Epilogue, target: Target, w: NDArray[np.int8], narrow: bool = False) -> ConvConfig:
    """The kernel's configuration for weights [O, number of runs, elements of a run]: the form that promises to be fastest, its tiles from the
    target's table where that has the problem, else by the same promise.

    `narrow`: weights may be nibbles; they are where channels fill two registers."""
    channels = shape.w[0] // shape.op.groups
    steps = _steps(shape, channels, epilogue)
    images, rows, columns = _flattened(shape.out[:3], steps)
    width = shape.out[2] if columns == shape.out[1] * shape.out[2] and shape.out[1] > 1 else 0
    packed = narrow and channels > target.lanes
    form, best = _problem((rows, columns), channels, target, w, packed, shape.bits)
    x, out, *residual = steps
    other = residual[0] if residual else None
    runs = _runs(shape)
    segments = segments_of(best)
    return ConvConfig(images, rows, columns, channels, shape.op.groups, runs, best.run, x, out, other, form, segments, epilogue, packed, width)


def _problem(pixels: tuple[int, int], channels: int, target: Target, w: NDArray[np.int8], packed: bool, bits: int) -> tuple[str, Problem]:
    """The form of dot products with the least cycles, and what its tiles are chosen by."""

    def problem(form: str) -> Problem:
        dot = expected_dot(w, form_named(form))
        run = -(-w.shape[2] // dot.elements)
        return Problem(target, *pixels, channels, w.shape[1] * run, run, dot, packed)

    found = [(form, p) for form in forms_for(target, bits) for p in (problem(form),)]
    return min(found, key=lambda f: cycles(f[1], choose_segments(f[1])))


def problem_of(run: Run, target: Target) -> Problem | None:
    """What the tiles of a step are chosen by; None where it is no dense convolution."""
    v = run.step.producer
    if not isinstance(v.op, IntConv) or is_depthwise(v):
        return None
    shape = conv_shape(run)
    epilogue, _ = epilogue_of(run, target)
    w = _in_runs(shape, v)
    channels = shape.w[0] // shape.op.groups
    _, *pixels = _flattened(shape.out[:3], _steps(shape, channels, epilogue))
    packed = _narrow(run, shape, w) and channels > target.lanes
    return _problem((pixels[0], pixels[1]), channels, target, w, packed, shape.bits)[1]


def _in_runs(shape: ConvShape, v: Value) -> NDArray[np.int8]:
    """Weights as [O, number of runs, elements of a run]."""
    return _weights(v).reshape(shape.w[0], -1, _run_length(shape))


def _weights(v: Value) -> NDArray[np.int8]:
    w = const_data(v.inputs[1])
    assert w is not None
    return w.astype(np.int8)


def _steps(shape: ConvShape, channels: int, epilogue: Epilogue) -> list[Steps]:
    """Steps of x, the result and perhaps the residual from one output position to the next."""
    n, h, w, _ = shape.x_strides
    sh, sw = shape.op.strides
    found = [Steps(n, h * sh, w * sw, shape.w[3] * shape.itemsize)]
    others = ((shape.out_strides, epilogue.itemsize), (shape.residual_strides, epilogue.residual_bits // 8))
    return found + [Steps(s[0], s[1], s[2], channels * size) for s, size in others if s is not None]


def _flattened(size: tuple[int, ...], steps: list[Steps]) -> tuple[int, int, int]:
    """(images, rows, columns) with axes merged that every operand walks without a gap."""
    n, rows, columns = size
    if all(s.row == columns * s.column for s in steps) or rows == 1:
        rows, columns = 1, rows * columns
    if rows == 1 and all(s.image == columns * s.column for s in steps):
        n, columns = 1, n * columns
    return n, rows, columns


def _adjacent(shape: ConvShape) -> bool:
    """Whether the pixels of a window's row are consecutive bytes."""
    return shape.op.groups == 1 and shape.op.dilations[1] == 1 and shape.x_strides[2] == shape.x[3] * shape.itemsize


def _run_length(shape: ConvShape) -> int:
    return shape.w[2] * shape.w[3] if _adjacent(shape) else shape.w[3]


def _runs(shape: ConvShape) -> tuple[tuple[int, int], ...]:
    kh, kw = shape.w[1:3]
    rows = (kh, shape.op.dilations[0] * shape.x_strides[1])
    columns = (1, 0) if _adjacent(shape) else (kw, shape.op.dilations[1] * shape.x_strides[2])
    return tuple((n, step) for n, step in (rows, columns) if n > 1)
