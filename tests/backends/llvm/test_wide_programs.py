"""Programs that hold values of 16 bits: their ends, what runs together, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from wide_graphs import WideBuilder

from qcompiler.backends import reference
from qcompiler.backends.certificate import certify
from qcompiler.backends.emulate import emulated
from qcompiler.backends.image import flatten
from qcompiler.backends.llvm.lower import compile_object
from qcompiler.backends.llvm.target import TARGETS
from qcompiler.errors import ProofError, UnsupportedModel
from qcompiler.ir.graph import Graph, Value, apply
from qcompiler.ir.integer import IntAdd, IntConv, IntSum, Lookup
from qcompiler.ir.ops import Dequantize, Input, Quantize
from qcompiler.ir.types import Quantization, float_type, quantized
from qcompiler.passes.partition import partition
from qcompiler.passes.prove_ranges import prove_ranges


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


INSTRUCTIONS = {
    "x86-64": ("pmaddwd", "pmaddubsw"),
    "x86-64-avx2": ("vpmaddwd", "vpmaddubsw"),
    "x86-64-avxvnni": ("vpdpwssd", "vpmaddwd"),
    "x86-64-avx512vnni": ("vpdpwssd", "vpmaddwd"),
    "arm64": ("smlal2", "sadalp"),
    "arm64-dotprod": ("smlal2", "sdot"),
    "arm64-i8mm": ("smlal2", "smmla"),
}
"""What multiplies pairs of 16-bit words on each target, and what must not be there."""


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("groups", [1, 64])
def test_pairs_of_words_are_multiplied_by_one_instruction(name: str, groups: int) -> None:
    b = WideBuilder()
    code = compile_object(b.graph(b.of_words(b.clamp(b.wide_input(1, 6, 6, 64), -8192, 8191), 64, (3, 3), groups=groups)), TARGETS[name])
    wanted, other = INSTRUCTIONS[name]
    assert wanted in code.assembly
    assert other not in code.assembly


def test_a_convolution_of_16_bits_is_proven_with_what_its_operand_is_clamped_to() -> None:
    """K = 1000 of weights of 64 in the mean."""
    b = WideBuilder()
    x = b.wide_input(1, 1, 1, 1000)
    with pytest.raises(ProofError, match="may reach"):
        prove_ranges(b.graph(b.of_words(x, 4)))
    graph = b.graph(b.of_words(b.clamp(x, -(1 << 13), (1 << 13) - 1), 4))
    bound = prove_ranges(graph)[next(v for v in graph.order if isinstance(v.op, IntConv))]
    assert 1 << 28 < bound.reach < 1 << 30


def test_operators_without_a_wide_kernel_name_their_operand() -> None:
    b = WideBuilder()
    x = b.wide_input(1, 8)
    table = b.const(np.zeros(256, np.int8))
    graph = b.graph(b.apply(Lookup(quantized((1, 8), b.quant())), x, table))
    with pytest.raises(UnsupportedModel, match=f"found '{x.name}' of 16"):
        compile_object(graph, TARGETS["x86-64"])
