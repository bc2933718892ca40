"""Every named instruction: its intrinsic computes its meaning where the CPU has it, and becomes its mnemonic."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import numpy as np
import pytest
from llvmlite import ir

from qcompiler.backends.llvm.codegen import emit_assembly, jit, optimized
from qcompiler.backends.llvm.dsl import I32, Kernel
from qcompiler.backends.llvm.instrs import INSTRS, Instr, vector_type
from qcompiler.backends.llvm.target import TARGETS, Target

EXTREMES = {
    8: (-128, -127, -1, 0, 1, 127),
    16: (-(1 << 15) + 1, -32513, -1, 0, 1, (1 << 15) - 1),
    32: (-(1 << 31), -40000, -1, 0, 40000, (1 << 31) - 1),
}


def target_with(feature: str) -> Target:
    """The first row that has the feature."""
    row = next((t for t in TARGETS.values() if feature in t.features), None)
    return row if row is not None else TARGETS["x86-64"]


def build(instr: Instr, target: Target) -> ir.Module:
    """f(args, result): loads the operands one after the other, stores what the instruction gives."""
    module = ir.Module()
    k = Kernel(module, target, "f", ["args", "result"], internal=False)
    args, result = k.parameters
    loaded, at = [], 0
    for lanes, bits in instr.params:
        loaded.append(k.b.load((args + at).ir, align=1, typ=vector_type((lanes, bits))))
        at += lanes * bits // 8
    k.b.store(instr(k, *loaded), result.ir, align=1)
    k.ret()
    return module


def random_operands(instr: Instr, rng: np.random.Generator) -> bytes:
    """Half of the lanes at the ends of their range."""
    pieces = []
    for lanes, bits in instr.params:
        anything = rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), lanes)
        pieces.append(np.where(rng.random(lanes) < 0.5, rng.choice(EXTREMES[bits], lanes), anything).astype(f"int{bits}").tobytes())
    return b"".join(pieces)


def results(instr: Instr, target: Target, operands: list[bytes]) -> list[bytes]:
    (function,) = jit(build(instr, target), target, ["f"])
    found = []
    for data in operands:
        out = ctypes.create_string_buffer(instr.returns[0] * instr.returns[1] // 8)
        source = ctypes.create_string_buffer(data, len(data))
        function(ctypes.addressof(source), ctypes.addressof(out))
        found.append(out.raw)
    return found


def ident(instr: Instr) -> str:
    return f"{instr.intrinsic}"


@pytest.mark.parametrize("instr", INSTRS, ids=ident)
def test_native_equals_meaning(instr: Instr) -> None:
    target = target_with(instr.feature)
    if not target.runs_here:
        pytest.skip(f"this CPU has no {instr.feature}")
    rng = np.random.default_rng(0)
    operands = [random_operands(instr, rng) for _ in range(200)]
    assert results(instr, target, operands) == results(instr, target.generic(), operands)


@pytest.mark.parametrize("instr", INSTRS, ids=ident)
def test_mnemonic(instr: Instr) -> None:
    target = target_with(instr.feature)
    machine = target.machine()
    text = emit_assembly(optimized(build(instr, target), target, machine), target)
    assert instr.name in text.split(), text


def test_returns_are_as_declared() -> None:
    for instr in INSTRS:
        k = Kernel(ir.Module(), replace(target_with(instr.feature), by_meaning=True), "f", [], returns=I32, internal=False)
        args = [ir.Constant(vector_type(p), ir.Undefined) for p in instr.params]
        assert instr(k, *args).type == vector_type(instr.returns), instr
