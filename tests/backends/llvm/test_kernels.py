"""Every kernel on every target (natively or by the meaning of its instructions), equal to the reference bit for bit; convolutions: `test_conv`."""

from __future__ import annotations

import numpy as np
import pytest
from guarded import Guarded
from hypothesis import HealthCheck, given, settings
from integer_graphs import Builder
from kernel_cases import CASES
from kernel_program import KernelProgram, here
from random_graphs import random_graphs

from qcompiler.backends import reference
from qcompiler.backends.certificate import certify
from qcompiler.backends.emulate import emulated
from qcompiler.backends.image import flatten
from qcompiler.backends.llvm.lower import compile_object
from qcompiler.backends.llvm.target import TARGETS
from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.types import DType
from qcompiler.passes.prove_ranges import prove_ranges
from qcompiler.runtime import Program
from qcompiler.runtime.executor import NativeExecutor

INTEGER = ["normalizations", "normalizations_of_16_bits", "rotations", "casts", "weights_of_few_bits", "convolutions_of_16_bits"]


def check(graph: Graph, feeds: dict[str, np.ndarray], target: str, program: KernelProgram | None = None) -> None:
    """The outputs on `target` are those of the reference."""
    program = program or KernelProgram(graph, here(target))
    expected = reference.run(graph, feeds)
    for output, got in zip(graph.output_names, program.run(feeds), strict=True):
        np.testing.assert_array_equal(got, expected[output])
        assert got.dtype == expected[output].dtype


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", CASES)
def test_kernels_equal_the_reference(name: str, target: str) -> None:
    b, graph = CASES[name].graph()
    program = KernelProgram(graph, here(target))
    for _ in range(2):
        check(graph, b.feeds(), target, program)


@pytest.mark.parametrize("name", CASES)
def test_the_overflow_proof_holds(name: str) -> None:
    _, graph = CASES[name].graph()
    assert all(bound.reach < 1 << 31 for bound in prove_ranges(graph).values())


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("bits", [8, 16])
def test_the_widest_sums_of_a_normalization(bits: int, target: str) -> None:
    """2^14 channels at the ends of their range."""
    b, low, high = Builder(), -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    shape = (4, 1 << 14)
    x = b.input(*shape, zero_point=127) if bits == 8 else b.wide_input(*shape)
    graph = b.graph(b.normalize(x), b.normalize(x, centered=False))
    rows = np.full(shape, low)
    rows[1], rows[2, ::2], rows[3, -1] = high, high, high
    feeds = {x.name: rows.astype(x.type.dtype.numpy)}
    check(graph, feeds, target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", INTEGER)
def test_kernels_are_integer(name: str, target: str) -> None:
    """Shifts by amounts that are known at run time, divisions by constants and saturation, without floats and without calls."""
    _, graph = CASES[name].graph()
    certificate = certify(compile_object(graph, TARGETS[target]).object, "model_run", TARGETS[target].arch)
    assert certificate.ok, certificate.findings


@pytest.mark.parametrize("target", TARGETS)
def test_casts_saturate(target: str) -> None:
    """Numbers that a program's entry would refuse, but that casts within it may meet."""
    b = Builder()
    inputs = [b.raw_input(kind, n) for kind in (DType.i64, DType.i32, DType.u32, DType.i16) for n in (3, 70)]
    graph, feeds = b.graph(*map(b.cast, inputs)), {}
    for v in inputs:
        bounds = np.iinfo(v.type.dtype.numpy)
        ends = np.array([bounds.min, bounds.max, 127, 128, 129, 255, 256, 300], v.type.dtype.numpy)
        feeds[v.name] = b.rng.choice(np.append(ends, -ends[2:]) if bounds.min else ends, v.shape)
    check(graph, feeds, target)


@pytest.mark.parametrize("target", ["x86-64-avx512vnni", "arm64-dotprod"])
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_graphs())
def test_random_graphs_equal_the_reference(target: str, grown: tuple[Builder, list[Value]]) -> None:
    b, outputs = grown
    check(b.graph(*outputs), b.feeds(), target)


@pytest.mark.parametrize("target", ["arm64", "arm64-dotprod", "x86-64"])
@pytest.mark.parametrize("name", CASES)
def test_machine_code_reads_nothing_behind_the_callers_buffers(name: str, target: str) -> None:
    """Real machine code in an emulated CPU, where every input and output ends at the end of a page with nothing mapped behind it."""
    b, graph = CASES[name].graph()
    code = compile_object(graph, TARGETS[target])
    feeds = b.feeds()
    expected = reference.run(graph, feeds)
    got = emulated(code.interface, flatten(code.object), TARGETS[target].features).run_integer(feeds)
    for output in graph.output_names:
        np.testing.assert_array_equal(got[output], expected[output])


@pytest.mark.parametrize("name", CASES)
def test_native_code_on_guarded_memory_by_threads(name: str) -> None:
    b, graph = CASES[name].graph()
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
