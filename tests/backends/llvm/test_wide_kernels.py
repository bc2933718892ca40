"""Kernels that read or write 16 bits, on every target (natively or by the meaning of their instructions), equal to the reference bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from guarded import Guarded
from kernel_program import KernelProgram, here
from wide_graphs import WideBuilder

from qcompiler.backends import reference
from qcompiler.backends.certificate import certify
from qcompiler.backends.emulate import emulated
from qcompiler.backends.image import flatten
from qcompiler.backends.llvm.lower import compile_object
from qcompiler.backends.llvm.target import TARGETS
from qcompiler.errors import ProofError, UnsupportedModel
from qcompiler.ir.graph import Graph, Value, apply
from qcompiler.ir.integer import IntAdd, IntMatMul, IntMul, IntResize, IntSum, IntSumPool, Lookup
from qcompiler.ir.ops import Dequantize, Input, PadMode, Quantize, Reduction
from qcompiler.ir.types import Quantization, float_type, quantized
from qcompiler.passes.partition import partition
from qcompiler.passes.prove_ranges import prove_ranges
from qcompiler.runtime import Program
from qcompiler.runtime.executor import NativeExecutor

Outputs = list[Value]
CASES: dict[str, Callable[[WideBuilder], Outputs]] = {}
SAME = ((1, 1), (1, 1))


def case(build: Callable[[WideBuilder], Outputs]) -> Callable[[WideBuilder], Outputs]:
    """Registers a graph: a function of a builder that returns the outputs."""
    CASES[build.__name__] = build
    return build


def stored(b: WideBuilder, *shape: int, zero_point: int = 3) -> Value:
    """A value of 8 bits in the arena."""
    return b.clamp(b.input(*shape, zero_point=zero_point), -128, 127)


def kept(b: WideBuilder, *shape: int) -> Value:
    """A value of 16 bits in the arena."""
    return b.clamp(b.wide_input(*shape), -32768, 32767)


@case
def convolutions(b):
    made = []
    for channels in (1, 8, 17, 33, 50, 64, 130):
        x = stored(b, 1, 5, 7, 8)
        made.append(b.clamp(b.wide_conv(x, channels, (3, 3), pads=SAME), -30000, 20000) if channels % 3 else b.wide_conv(x, channels))
    x = stored(b, 2, 6, 5, 12)
    return [*made, b.wide_conv(x, 24, (3, 3), groups=4), b.wide_conv(x, 10, per_channel=False), b.wide_conv(x, 20, strides=(2, 2), lo=0, hi=9000)]


@case
def depthwise_convolutions(b):
    made = []
    for channels in (1, 5, 16, 33, 70):
        x = stored(b, 1, 6, 9, channels)
        made += [
            b.wide_conv(x, channels, (3, 3), pads=SAME, groups=channels),
            b.add16(b.wide_conv(x, channels, groups=channels), kept(b, 1, 6, 9, channels)),
        ]
    return made


@case
def streams(b):
    """Convolutions that add to a residual stream, read by another convolution through a rescaling."""
    made = []
    for channels in (1, 8, 21, 48):
        x, stream = stored(b, 1, 5, 7, 8), kept(b, 1, 5, 7, channels)
        first = b.add16(b.wide_conv(x, channels), stream)
        inner = b.conv(b.narrowed(first), 12)
        made += [b.add16(first, b.wide_conv(inner, channels, (3, 3), pads=SAME)), first]
    return made


@case
def residuals_of_either_width(b):
    x, made = stored(b, 1, 4, 7, 8), []
    for channels in (3, 16, 40):
        wide, narrow = kept(b, 1, 4, 7, channels), stored(b, 1, 4, 7, channels, zero_point=-100)
        made += [b.narrowed(b.wide_conv(x, channels), wide), b.summed(b.wide_conv(x, channels), narrow), b.narrowed(wide, b.conv(x, channels))]
        made += [b.summed(b.conv(x, channels), wide), b.summed(narrow, b.conv(x, channels))]
    return [*made, b.lookup(b.narrowed(b.wide_conv(x, 3), kept(b, 1, 4, 7, 3)))]


@case
def residuals_in_the_accumulator(b):
    made = []
    for channels in (3, 33, 70):
        r = stored(b, 1, 4, 5, channels)
        acc = b.conv_acc(stored(b, 1, 4, 5, 8), channels)
        m = b.const(b.rng.integers(1, 1 << 15, channels).astype(np.int32))
        made.append(b.widened(b.apply(acc.op, *acc.inputs, r, m), 900_000.0, channels))
    return made


@case
def dense_layers(b):
    return [b.wide_conv(stored(b, 1, 1, rows, 40), n) for rows, n in ((1, 10), (3, 100), (7, 65), (2, 3))]


@case
def sums(b):
    x, y, z = kept(b, 1, 5, 7, 9), stored(b, 1, 5, 7, 9, zero_point=-128), b.wide_input(1, 5, 7, 9)
    return [
        b.narrowed(x),
        b.summed(y),
        b.narrowed(z),
        b.summed(x, y),
        b.narrowed(y, z),
        b.narrowed(x, z),
        b.widened(b.weighted(x, y, z, great=3000), 3e7),
        b.clamp(b.narrowed(y, x, b.int8_const(1, 5, 7, 9), b.wide_const(1, 5, 7, 9))),
        b.summed(b.input(1, 5, 7, 9)),
    ]


@case
def sums_that_broadcast(b):
    x, c = kept(b, 2, 3, 4, 21), stored(b, 2, 1, 1, 21)
    return [
        b.summed(x, c),
        b.narrowed(kept(b, 1, 3, 4, 1), x),
        b.summed(x, b.wide_const(21)),
        b.narrowed(x, b.wide_const(1)),
        b.narrowed(stored(b, 2, 3, 1, 1), b.wide_input(1, 4, 21)),
    ]


@case
def sums_with_constants_per_channel(b):
    x = [kept(b, 1, 3, 2, c) for c in (1, 5, 16, 40, 64, 130, 256)]
    return [b.summed(v, v, channels=v.shape[3]) for v in x] + [b.narrowed(x[3], b.input(1, 1, 1, 40), channels=40)]


@case
def sums_with_wide_multipliers(b):
    x, y = stored(b, 1, 50), kept(b, 1, 50)
    return [b.widened(b.apply(IntSum((70000, -30000)), x, y), 4e8), b.requantize(b.apply(IntSum((40000,)), y), 6e8)]


@case
def additions(b):
    x, y = kept(b, 1, 5, 7, 9), b.wide_input(1, 5, 7, 9)
    return [b.add16(x, y), b.add16(y, y), b.add16(b.add16(x, b.wide_const(1, 5, 7, 9)), x), b.add16(kept(b, 3, 100), b.wide_input(3, 100))]


@case
def pointwise(b):
    x, y = kept(b, 1, 5, 7, 9), b.wide_input(1, 5, 7, 9)
    return [
        b.clamp(x, -20000, 32767),
        b.clamp(y, -32768, 500),
        b.maximum(x, y),
        b.minimum(x, b.wide_const(9)),
        b.maximum(kept(b, 1, 1, 1, 9), y),
        b.minimum(kept(b, 4, 1), b.wide_input(4, 70)),
    ]


@case
def products(b):
    x, y = stored(b, 1, 6, 5, 24), stored(b, 1, 6, 5, 24, zero_point=-20)
    acc = b.apply(IntMul(), x, y)
    shapes = [((3, 5), (5, 7)), ((2, 4, 16), (2, 16, 65)), ((1, 1), (1, 130))]
    made = [b.apply(IntMatMul(), stored(b, *p), stored(b, *q, zero_point=-9)) for p, q in shapes]
    return [b.widened(acc, 6000.0), b.widened(acc, 6000.0, 24), *(b.widened(m, 6000.0 * 4) for m in made)]


@case
def pools(b):
    x, wide = stored(b, 1, 9, 8, 20), kept(b, 1, 9, 8, 20)
    sums = [b.apply(IntSumPool(k, s, p, (1, 1)), x) for k, s, p in (((2, 2), (2, 2), ((0, 0), (0, 0))), ((3, 3), (1, 1), SAME))]
    return [
        *(b.widened(a, 150.0) for a in sums),
        b.widened(sums[1], 150.0, shape=(9, 8, 1)),
        b.max_pool(wide, (2, 2), (2, 2)),
        b.max_pool(wide, (3, 3), (2, 2), SAME),
        b.max_pool(b.wide_input(2, 5, 5, 3), (3, 3), (1, 1), SAME),
        b.max_pool(kept(b, 1, 4, 4, 70), (3, 3), (1, 1), SAME),
    ]


@case
def reductions(b):
    x, narrow = kept(b, 2, 7, 6, 20), stored(b, 2, 7, 6, 20)
    sums = [b.reduced(x, a, keep) for a, keep in (((1, 2), True), ((1, 2), False), ((3,), True), ((0, 1, 2, 3), True), ((2,), False), ((1, 3), True))]
    sums += [b.reduced(b.wide_input(1, 30, 26, 70), (1, 2)), b.reduced(b.wide_input(3, 2, 150), (1, 2)), b.reduced(kept(b, 5, 64), (1,))]
    made = [b.requantize(s, 1e6) for s in sums] + [b.widened(s, 1e6) for s in sums] + [b.widened(b.reduced(narrow, (1, 2)), 800.0)]
    made.append(b.widened(b.reduced(x, (1, 2), False), 1e6, 20))
    made += [b.reduce(kind, x, a, keep) for kind in (Reduction.max, Reduction.min) for a in ((1, 2), (3,), (0, 1, 2, 3)) for keep in (True, False)]
    return [*made, b.reduce(Reduction.max, b.wide_input(3, 150), (1,)), b.reduce(Reduction.min, b.wide_input(3, 150), (0, 1))]


@case
def interpolations(b):
    made = [(stored(b, 2, 4, 5, c), 7, 3) for c in (1, 20, 64)]
    return [b.widened(b.apply(IntResize(b.taps(x.shape[1], oh), b.taps(x.shape[2], ow)), x), 60.0 * 2**14) for x, oh, ow in made]


@case
def movement(b):
    x, y = kept(b, 1, 3, 4, 5), b.wide_input(1, 3, 4, 5)
    joined = [b.concat(axis, b.clamp(x, -9, 9000), y, b.wide_const(1, 3, 4, 5), x) for axis in range(4)]
    made = [b.add16(b.concat(3, b.add16(x, y), b.max_pool(x, (1, 1))), b.wide_input(1, 3, 4, 10)), b.reshape(x, 60), b.reshape(y, 4, 15)]
    moved = [b.transpose(kept(b, 1, 9, 23), 0, 2, 1), b.transpose(b.wide_input(2, 3, 17), 0, 2, 1), b.transpose(kept(b, 1, 6, 5, 24), 0, 3, 1, 2)]
    cut = [
        b.slice(x, (0, 1, 1), (2, -1, -2), (1, 4, 2), (0, 5, 1)),
        b.clamp(b.channels(x, 2, 5), -999, 999),
        b.slice(y, (0, 1, 1), (0, 3, 1), (0, 4, 1), (4, -1, -2)),
    ]
    return [
        *joined,
        *made,
        *moved,
        *cut,
        b.tile(kept(b, 2, 3, 5), 2, 1, 3),
        b.expand(b.wide_input(1, 3, 1), 4, 3, 6),
        b.expand(kept(b, 1, 20), 3, 20),
    ]


@case
def pads_and_gathers(b):
    x, y = kept(b, 1, 5, 6, 3), kept(b, 4, 5, 20)
    spatial = ((0, 0), (2, 1), (1, 3), (0, 0))
    return [
        *(b.pad(x, *spatial, mode=m) for m in (PadMode.reflect, PadMode.edge)),
        b.pad(x, *spatial, value=1.3),
        b.pad(b.wide_input(2, 3), (1, 0), (-1, 2), value=-2.0),
        b.gather(y, 0, [3, -1, 0]),
        b.gather(y, 2, [0, 19, -2, 5, 5]),
        b.gather(y, 1, np.array([[1, 2, 0], [4, -5, 3]])),
        b.gather(b.wide_input(3, 70), 0, [2, 0]),
        b.nearest(kept(b, 1, 3, 4, 5), 1, 6, 7, 5),
    ]


@case
def values_inside_of_larger_pixels(b):
    """Operands and results with gaps between their pixels, down to single channels."""
    x = kept(b, 1, 4, 5, 7)
    one, two = b.channels(x, 2, 3), b.channels(x, 3, 7)
    parts = [b.add16(one, one), b.maximum(two, one), b.summed(b.channels(stored(b, 1, 4, 5, 9), 1, 6)), b.wide_conv(stored(b, 1, 4, 5, 3), 6)]
    return [b.clamp(b.concat(3, *parts, b.add16(b.wide_conv(stored(b, 1, 4, 5, 3), 4), two)), -32000, 32000), b.narrowed(two)]


def built(name: str) -> tuple[WideBuilder, Graph]:
    b = WideBuilder(seed=len(name))
    return b, b.graph(*CASES[name](b))


@pytest.mark.parametrize("name", CASES)
def test_the_overflow_proof_holds(name: str) -> None:
    _, graph = built(name)
    assert all(bound.reach < 1 << 31 for bound in prove_ranges(graph).values())


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", CASES)
def test_kernels_equal_the_reference(name: str, target: str) -> None:
    b, graph = built(name)
    program = KernelProgram(graph, here(target))
    for _ in range(2):
        feeds = b.feeds()
        expected = reference.run(graph, feeds)
        for output, got in zip(graph.output_names, program.run(feeds), strict=True):
            np.testing.assert_array_equal(got, expected[output])
            assert got.dtype == expected[output].dtype


@pytest.mark.parametrize("target", ["arm64", "arm64-dotprod", "x86-64"])
@pytest.mark.parametrize("name", CASES)
def test_machine_code_reads_nothing_behind_the_callers_buffers(name: str, target: str) -> None:
    """Real machine code in an emulated CPU, where every input and output ends at the end of a page with nothing mapped behind it."""
    b, graph = built(name)
    code = compile_object(graph, TARGETS[target])
    feeds = b.feeds()
    expected = reference.run(graph, feeds)
    got = emulated(code.interface, flatten(code.object), TARGETS[target].features).run_integer(feeds)
    for output in graph.output_names:
        np.testing.assert_array_equal(got[output], expected[output])


@pytest.mark.parametrize("name", CASES)
def test_native_code_on_guarded_memory_by_threads(name: str) -> None:
    b, graph = built(name)
    code = compile_object(graph, TARGETS["x86-64"])
    image, feeds = flatten(code.object), b.feeds()
    expected = reference.run(graph, feeds)
    guarded = Program(code.interface, Guarded(NativeExecutor.of_image(image.data, image.entries))).run_integer(feeds)
    threads = Program.of_image(code.interface, image.data, image.entries, threads=3)
    divided = threads.run_integer(feeds)
    threads.threads = 1
    for output in graph.output_names:
        np.testing.assert_array_equal(guarded[output], expected[output])
        np.testing.assert_array_equal(divided[output], expected[output])


# --- programs ------------------------------------------------------------------------------------------------------------


def float_program() -> Graph:
    """Floats in, logits of 16 bits out; the second input is quantized to 16 bits and added to them."""
    b = WideBuilder(seed=3)
    x, r = (Value(Input(float_type(*s)), (), float_type(*s), n) for s, n in (((1, 3, 3, 7), "x"), ((1, 3, 3, 21), "r")))
    q = apply(Quantize(quantized(x.shape, Quantization.per_tensor(0.02, 3))), x, name="q")
    wide = apply(Quantize(quantized(r.shape, Quantization.per_tensor(0.0005, 0, 16))), r, name="wide")
    y = b.add16(b.wide_conv(q, 21), wide)
    return Graph((x, r), (apply(Dequantize(), y, name="y"), y), ("logits", "integers"))


@pytest.mark.parametrize("name", ["arm64-dotprod", "x86-64"])
def test_floats_in_and_out_through_sixteen_bits(name: str) -> None:
    graph, rng = float_program(), np.random.default_rng(5)
    code = compile_object(graph, TARGETS[name])
    feeds = {"x": rng.normal(size=(1, 3, 3, 7)).astype(np.float32), "r": rng.normal(scale=8, size=(1, 3, 3, 21)).astype(np.float32)}
    expected = reference.run(graph, feeds)
    got = emulated(code.interface, flatten(code.object), TARGETS[name].features).run(feeds)
    assert [(t.dtype, t.storage) for t in code.interface.outputs] == [("float32", "int16")] * 2
    assert np.abs(expected["integers"].astype(np.int64)).max() > 20000
    np.testing.assert_array_equal(got["logits"], expected["logits"])


@pytest.mark.parametrize("name", TARGETS)
def test_integers_only(name: str) -> None:
    assert certify(compile_object(float_program(), TARGETS[name]).object, "model_run").findings == ()


# --- what runs together, and what does not -------------------------------------------------------------------------------


def test_an_addition_of_sixteen_bits_joins_its_convolution() -> None:
    b = WideBuilder()
    stream = b.wide_input(1, 3, 3, 4)
    y = b.add16(stream, b.wide_conv(b.input(1, 3, 3, 5), 4))
    again = b.add16(y, y)
    steps = partition(b.graph(again))
    assert [type(s.result.op) for s in steps] == [IntAdd, IntAdd]
    assert steps[0].residual is stream
    assert (steps[1].producer, steps[1].epilogue) == (again, ())


def test_sums_whose_multipliers_are_too_wide_for_an_epilogue_are_kernels_of_their_own() -> None:
    b = WideBuilder()
    y = b.conv(b.input(1, 3, 3, 5), 4)
    total = b.requantize(b.apply(IntSum((1 << 15, 3)), y, b.input(1, 3, 3, 4)), 70.0 * (1 << 15))
    assert len(partition(b.graph(total))) == 2


def test_a_sum_of_sixteen_bits_that_may_overflow_is_refused() -> None:
    b = WideBuilder()
    x, y = b.wide_input(1, 8), b.wide_input(1, 8)
    with pytest.raises(ProofError, match="may reach"):
        prove_ranges(b.graph(b.widened(b.apply(IntSum((32767, 32767, 9)), x, y, x), 1e9)))


def test_operators_without_a_wide_kernel_name_their_operand() -> None:
    b = WideBuilder()
    x = b.wide_input(1, 8)
    table = b.const(np.zeros(256, np.int8))
    graph = b.graph(b.apply(Lookup(quantized((1, 8), b.quant())), x, table))
    with pytest.raises(UnsupportedModel, match=f"found '{x.name}' of 16"):
        compile_object(graph, TARGETS["x86-64"])
