"""Fine streams: 16 bits added in accumulators, and their copies of 8 bits; every target equals the reference."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_program import KernelProgram, here
from wide_graphs import WideBuilder

from qcompiler.backends import reference
from qcompiler.backends.certificate import certify
from qcompiler.backends.llvm.lower import compile_object
from qcompiler.backends.llvm.target import TARGETS
from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.integer import IntNarrow
from qcompiler.ir.types import Quantization, quantized
from qcompiler.passes.partition import partition
from qcompiler.passes.prove_ranges import prove_ranges

SAME = ((1, 1), (1, 1))
CHANNELS = (3, 16, 33, 70)


class StreamBuilder(WideBuilder):
    def narrow(self, r: Value, zero_point: int) -> Value:
        """The copy of 8 bits."""
        quant = Quantization.per_tensor(r.type.quant.scale[0] * 64, zero_point)
        return self.apply(IntNarrow(quantized(r.shape, quant)), r)

    def kept(self, *shape: int) -> Value:
        """16 bits in the arena."""
        return self.clamp(self.wide_input(*shape), -(1 << 15), (1 << 15) - 1)

    def fine_conv(self, x: Value, r: Value, kernel=(1, 1), lo: int = 0, **kw) -> Value:
        """A convolution that adds `r`, to 16 bits that are clamped."""
        acc = self.conv_acc(x, r.shape[3], kernel, **kw)
        m = self.const(self.rng.integers(1, 1 << 15, r.shape[3]).astype(np.int32))
        return self.widened(self.apply(acc.op, *acc.inputs, r, m), 900_000.0, r.shape[3], lo, (1 << 14) - 1)


def additions(b: StreamBuilder) -> list[Value]:
    """To 8 bits and to 16, of pixels and windows, of few and many channels, per group and per channel."""
    made = []
    for channels in CHANNELS:
        x, r = b.input(1, 5, 7, 24), b.kept(1, 5, 7, channels)
        made += [b.residual_conv(x, r), b.residual_conv(x, r, (3, 3), pads=SAME), b.fine_conv(x, r), b.fine_conv(x, r, (3, 3), pads=SAME)]
    x, r = b.input(2, 4, 6, 24), b.kept(2, 4, 6, 24)
    return [*made, b.fine_conv(x, r, (3, 3), pads=SAME, groups=24), b.residual_conv(x, r, (3, 3), pads=SAME, groups=2)]


def copies(b: StreamBuilder) -> list[Value]:
    """Dense, with a halo around, handed out, and from an input, with zero points at the ends and between."""
    made = [b.narrow(b.kept(1, 5, 7, c), z) for c, z in zip(CHANNELS, (-128, 127, 0, -5))]
    halo = b.conv(b.narrow(b.kept(1, 9, 7, 40), -128), 8, (3, 3), pads=SAME)
    return [*made, halo, b.narrow(b.wide_input(1, 3, 3, 70), 17)]


def blocks(b: StreamBuilder) -> list[Value]:
    """A stream through three blocks, as `residuals` makes it."""
    r = b.wide_conv(b.input(1, 8, 8, 3), 16, (3, 3), pads=SAME, lo=0)
    for _ in range(3):
        inner = b.conv(b.narrow(r, -128), 24, (3, 3), pads=SAME)
        r = b.fine_conv(inner, r, (3, 3), pads=SAME)
    return [b.narrow(r, -128)]


GRAPHS = {f.__name__: f for f in (additions, copies, blocks)}


def made(name: str) -> tuple[StreamBuilder, Graph]:
    b = StreamBuilder(seed=3)
    return b, b.graph(*GRAPHS[name](b))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", GRAPHS)
def test_kernels_equal_the_reference(name: str, target: str) -> None:
    b, graph = made(name)
    feeds = b.feeds()
    expected = reference.run(graph, feeds)
    for output, got in zip(graph.output_names, KernelProgram(graph, here(target)).run(feeds), strict=True):
        np.testing.assert_array_equal(got, expected[output])


@pytest.mark.parametrize("name", GRAPHS)
def test_the_overflow_proof_holds(name: str) -> None:
    assert all(bound.reach < 1 << 31 for bound in prove_ranges(made(name)[1]).values())


@pytest.mark.parametrize("target", ["x86-64-avx2", "x86-64-avx512vnni", "arm64-dotprod"])
def test_the_certificate_holds(target: str) -> None:
    assert certify(compile_object(made("blocks")[1], TARGETS[target]).object, "model_run", TARGETS[target].arch).ok


def test_an_addition_and_its_clamp_are_one_kernel() -> None:
    steps = partition(made("blocks")[1])
    assert [type(s.producer.op).__name__ for s in steps] == ["IntConv", *["IntNarrow", "IntConv", "IntConv"] * 3, "IntNarrow"]
