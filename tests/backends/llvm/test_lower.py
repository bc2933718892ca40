"""Whole programs: every target and operating system compiles, constants arrive in the object, both entries run."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler import runtime
from qcompiler.backends import reference
from qcompiler.backends.certificate import certify
from qcompiler.backends.image import flatten
from qcompiler.backends.llvm import weights
from qcompiler.backends.llvm.lower import ObjectCode, compile_object
from qcompiler.backends.llvm.target import TARGETS, TRIPLES, Target, find_target, host_target
from qcompiler.errors import UsageError
from qcompiler.ir.graph import Graph, Value, apply
from qcompiler.ir.integer import IntConv, Requantize
from qcompiler.ir.ops import Dequantize, Input, Quantize, constant
from qcompiler.ir.types import Quantization, float_type, quantized
from qcompiler.numerics.requantize import multiplier

SHAPE = (1, 9, 9, 3)
MAGIC = {"linux": b"\x7fELF", "android": b"\x7fELF", "macos": b"\xcf\xfa\xed\xfe"}


def conv(x: Value, channels: int, kernel: int, name: str, rng: np.random.Generator) -> Value:
    w = rng.integers(-127, 128, (channels, kernel, kernel, x.shape[3])).astype(np.int8)
    op = IntConv((1, 1), ((kernel // 2, kernel // 2),) * 2)
    acc = apply(op, x, constant(w, "w"), constant(rng.integers(-999, 999, channels).astype(np.int32), "b"), name=f"{name}.acc")
    reals = rng.uniform(0.5, 2, channels) / (74 * np.sqrt(w[0].size))
    reals[0] = 3.0  # shifts left
    pairs = [multiplier(float(r)) for r in reals]
    shift, q = (constant(np.array([getattr(p, f) for p in pairs], np.int32), f) for f in ("shift", "q"))
    return apply(Requantize(quantized(acc.shape, Quantization.per_tensor(0.1, -100))), acc, shift, q, name=name)


@pytest.fixture(scope="module")
def graph() -> Graph:
    rng = np.random.default_rng(0)
    x = Value(Input(float_type(*SHAPE)), (), float_type(*SHAPE), "image")
    q = apply(Quantize(quantized(SHAPE, Quantization.per_tensor(0.02, 3))), x, name="q")
    y = conv(conv(conv(q, 16, 3, "a", rng), 16, 3, "b", rng), 16, 3, "c", rng)
    return Graph((x,), (apply(Dequantize(), conv(y, 10, 3, "d", rng), name="y"),), ("logits",))


@pytest.mark.parametrize("os", TRIPLES)
@pytest.mark.parametrize("name", TARGETS)
def test_compiles_for_every_system(graph: Graph, name: str, os: str) -> None:
    code = compile_object(graph, TARGETS[name].for_os(os))
    assert code.object.startswith(MAGIC.get(os, b""))
    assert weights.MARKER not in code.object
    assert [t.name for t in (*code.interface.inputs, *code.interface.outputs)] == ["image", "logits"]


@pytest.mark.parametrize("target", [t for t in TARGETS.values() if t.runs_here], ids=lambda t: t.name)
def test_runs_as_the_reference(graph: Graph, target: Target) -> None:
    code = compile_object(graph, target)
    image = flatten(code.object)
    program = runtime.Program.of_image(code.interface, image.data, image.entries)
    x = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    np.testing.assert_array_equal(program.run({"image": x})["logits"], reference.run(graph, {"image": x})["logits"])


def test_equal_layers_share_a_function(graph: Graph) -> None:
    code = compile_object(graph, TARGETS["x86-64-avx2"])
    name = {launch.label: symbol for launch, symbol in zip(code.launches, code.symbols)}
    assert name["b"] == name["c"]
    assert len({name[label] for label in "abd"}) == 3


def test_compiling_twice_gives_the_same_bytes(graph: Graph) -> None:
    assert compile_object(graph, TARGETS["x86-64-avx2"]).object == compile_object(graph, TARGETS["x86-64-avx2"]).object


@pytest.mark.parametrize("name", TARGETS)
def test_integers_only(graph: Graph, name: str) -> None:
    assert certify(compile_object(graph, TARGETS[name]).object, "model_run").findings == ()


@pytest.mark.parametrize("name", TARGETS)
def test_no_call_leaves_the_object(graph: Graph, name: str) -> None:
    assert not flatten(compile_object(graph, TARGETS[name]).object).problems
    windows: ObjectCode = compile_object(graph, TARGETS[name].for_os("windows"))
    assert not [line for line in windows.assembly.splitlines() if "chkstk" in line]


def test_constants_are_kept_once() -> None:
    constants = weights.Constants()
    assert constants.place(b"a" * 70) == 0
    assert constants.place(b"b") == 128
    assert constants.place(b"a" * 70) == 0
    assert constants.size == 192


def test_find_target() -> None:
    assert find_target("host") == host_target()
    assert find_target("arm64-dotprod@macos").triple == "arm64-apple-macosx11.0.0"
    with pytest.raises(UsageError, match="arm64-dotprod"):
        find_target("arm65")
    with pytest.raises(UsageError, match="windows"):
        find_target("arm64@beos")
