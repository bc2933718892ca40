"""The profiling build has the product's bits and one time stamp more than launches; peaks are of full register files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qcompiler.api import Program, compile
from qcompiler.backends.image import flatten
from qcompiler.backends.llvm.codegen import emit_assembly, optimized
from qcompiler.backends.llvm.dot import dense_forms, densest
from qcompiler.backends.llvm.dsl import I32, Kernel
from qcompiler.backends.llvm.peak import Chain, accumulators, chain_gops, emit_peak, peak_gops, read_gbs
from qcompiler.backends.llvm.profile import STAMPS, compile_profiled
from qcompiler.backends.llvm.target import TARGETS, host_target
from qcompiler.errors import UsageError
from qcompiler.ir.integer import IntConv, IntMatMul
from qcompiler.profile import profile, times_in_turns
from qcompiler.runtime import Program as Executable

NETWORK = Path(__file__).parents[3] / "models" / "digits_resnet.onnx"
MNEMONICS = {"vpdpbusd": "vpdpbusd", "maddubs": "maddubsw", "sdot": "sdot", "smull": "smull", "smmla": "smmla", "lengthwise": "smlal2"}


@pytest.fixture(scope="module")
def program() -> Program:
    return compile(NETWORK)


@pytest.fixture(scope="module")
def feeds() -> dict[str, np.ndarray]:
    return {"input": np.random.default_rng(0).random((1, 1, 8, 8), np.float32)}


def test_the_profiling_build_computes_the_same_and_stamps_every_launch(program, feeds):
    code = compile_profiled(program.graph, program.target)
    image = flatten(code.object)
    found = Executable.of_image(code.interface, image.data, image.entries).run(feeds)
    stamps = found.pop(STAMPS)
    assert stamps.shape == (len(code.launches) + 1,)
    assert stamps[0] > 0
    assert (np.diff(stamps) >= 0).all()
    expected = program.run(feeds)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_the_product_reads_no_counter(program):
    assert "rdtsc" not in program.code.assembly
    assert "rdtsc" in compile_profiled(program.graph, TARGETS["x86-64-avx2"]).assembly


def test_arm_reads_its_virtual_counter(program):
    assert "CNTVCT_EL0" in compile_profiled(program.graph, TARGETS["arm64-dotprod"]).assembly.upper()


def test_every_step_is_in_the_profile(program, feeds):
    found = program.profile(feeds, seconds=0.01)
    layers = {x.name: x for x in found.layers}
    assert {s.result.name for s in program.model.steps if isinstance(s.producer.op, IntConv | IntMatMul)} <= layers.keys()
    assert sum(x.macs for x in found.layers) == program.report.macs
    assert sum(x.milliseconds for x in found.layers) == pytest.approx(found.milliseconds)
    assert all(x.nbytes > 0 and x.limit in ("compute", "bytes") for x in found.layers if x.macs)
    conv = next(x for x in found.layers if x.operator == "IntConv 3x3")
    assert conv.intensity == 2 * conv.macs / conv.nbytes
    assert found.as_dict()["layers"][0]["name"] == found.layers[0].name


def test_programs_in_turns_are_told_by_the_same_labels(program, feeds):
    twice = times_in_turns([(program.graph, program.target)] * 2, feeds, seconds=0.01)
    labels = {x.name for x in program.profile(feeds, seconds=0.01).layers}
    assert [x.keys() for x in twice] == [labels, labels]
    assert all(t >= 0 for x in twice for t in x.values())


def test_layers_slower_than_float_are_named(program, feeds):
    found = program.profile(feeds, seconds=0.01)
    slow, fast, one, other = (x.name for x in found.layers[-4:])
    beside = found.beside({(slow,): -1.0, (fast,): 1e9, (one, other): -2.0})
    assert [x.layers for x in beside.slower_than_float] == [(slow,), (one, other)]
    assert beside.comparisons[2].milliseconds == pytest.approx(sum(x.milliseconds for x in found.layers[-2:]))
    assert [x.float_milliseconds for x in beside.layers[-4:]] == [-1.0, 1e9, None, None]
    assert len(beside.uncompared) == len(found.layers) - 4
    assert [x["kept"] for x in beside.as_dict()["comparisons"]] == [False, True, False]


def test_a_target_of_another_machine_cannot_be_profiled(program, feeds):
    other = next(t for t in TARGETS.values() if not t.runs_here)
    with pytest.raises(UsageError, match=other.name):
        profile(program.graph, other, feeds)


def peak_loop(target, count, chain):
    """The instructions of the loop that measures a peak."""
    from llvmlite import ir

    module = ir.Module("peak")
    k = Kernel(module, target, "peak", ("source", "target"), I32, internal=False)
    emit_peak(k, count, chain)
    k.ret(0)
    text = emit_assembly(optimized(module, target, target.machine()), target)
    start = text.index("LBB0_1:")
    stop = text.index("LBB0_1", start + 1)
    return [line.split("#")[0].split("//")[0].strip() for line in text[start:stop].splitlines()]


@pytest.mark.parametrize("name", list(TARGETS))
def test_the_peak_loop_is_dot_products_and_nothing_from_memory(name):
    target = TARGETS[name]
    count = accumulators(densest(target), target)
    body = peak_loop(target, count, Chain())
    assert sum(MNEMONICS[dense_forms(target)[-1]] in line for line in body) >= count
    assert not any("(%r" in line or "[x" in line or "[sp" in line for line in body)


@pytest.mark.parametrize("chain", [Chain(1, signed=False), Chain(2), Chain(4, signed=False)], ids=str)
def test_the_peak_of_a_chain_widens_once(chain):
    target = TARGETS["x86-64-avx2"]
    count = accumulators(densest(target), target)
    body = peak_loop(target, count, chain)
    signs = count * chain.links if chain.signed else 0
    expected = {"vpmaddubsw": count * chain.links, "vpmaddwd": count, "vpsignb": signs, "vpaddw": count * (chain.links - 1)}
    assert {name: sum(line.startswith(name) for line in body) for name in expected} == expected


def test_only_sums_of_16_bits_have_chains():
    with pytest.raises(UsageError, match="x86-64-avx512vnni"):
        chain_gops(TARGETS["x86-64-avx512vnni"], Chain())


def test_the_peak_is_a_rate():
    assert peak_gops(host_target()) > 1
    assert read_gbs(host_target()) > 0.1
