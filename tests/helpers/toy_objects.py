"""Objects of a few functions, as the code generator would make them, small enough to know every answer.

`model_run` copies eight int8 inputs to the arena and lets an internal function sum their products with a table; `model_run_f32` quantizes
before and dequantizes after. `EXTRA` holds functions that break one rule each.
"""

from __future__ import annotations

import llvmlite.binding as llvm
import numpy as np

from qcompiler.backends.llvm.target import initialize
from qcompiler.runtime.artifact import Interface, Platform, Tensor
from qcompiler.runtime.cpu import machine_arch

WEIGHTS = np.array([1, 2, 3, 4, 5, 6, -7, -1], np.int8)
X = Tensor("x", (1, 8), scale=0.125, zero_point=0)
Y = Tensor("y", (1, 1), scale=0.5, zero_point=0)
INTERFACE = Interface("model", 128, 8, (X,), (Y,))
TRIPLES = {
    "linux": "{}-unknown-linux-gnu",
    "windows": "{}-pc-windows-msvc",
    "macos": "{}-apple-macosx11.0.0",
}
ARCHITECTURES = ("x86_64", "aarch64")

TOY = r"""
@weights = private unnamed_addr constant [8 x i8] c"\01\02\03\04\05\06\F9\FF", align 64
declare <8 x i8> @llvm.fptosi.sat.v8i8.v8f32(<8 x float>)
define internal i32 @inner(ptr %x, i32 %n) noinline {
entry:
  br label %loop
loop:
  %i = phi i32 [0, %entry], [%next, %loop]
  %sum = phi i32 [0, %entry], [%more, %loop]
  %p = getelementptr i8, ptr %x, i32 %i
  %q = getelementptr i8, ptr @weights, i32 %i
  %a = load i8, ptr %p
  %b = load i8, ptr %q
  %a32 = sext i8 %a to i32
  %b32 = sext i8 %b to i32
  %product = mul i32 %a32, %b32
  %more = add i32 %sum, %product
  %next = add i32 %i, 1
  %done = icmp eq i32 %next, %n
  br i1 %done, label %end, label %loop
end:
  ret i32 %more
}
define i32 @model_run(ptr %inputs, ptr %outputs, ptr %arena) {
  %x = load ptr, ptr %inputs
  %y = load ptr, ptr %outputs
  %v = load <8 x i8>, ptr %x, align 1
  store <8 x i8> %v, ptr %arena, align 64
  %sum = call i32 @inner(ptr %arena, i32 8)
  %byte = trunc i32 %sum to i8
  store i8 %byte, ptr %y
  ret i32 0
}
define i32 @model_run_f32(ptr %inputs, ptr %outputs, ptr %arena) {
  %x = load ptr, ptr %inputs
  %y = load ptr, ptr %outputs
  %v = load <8 x float>, ptr %x, align 4
  %scaled = fmul <8 x float> %v, splat (float 8.0)
  %q = call <8 x i8> @llvm.fptosi.sat.v8i8.v8f32(<8 x float> %scaled)
  %slot = getelementptr i8, ptr %arena, i32 64
  store <8 x i8> %q, ptr %slot, align 64
  %sum = call i32 @inner(ptr %slot, i32 8)
  %byte = trunc i32 %sum to i8
  %real = sitofp i8 %byte to float
  %result = fmul float %real, 0.5
  store float %result, ptr %y, align 4
  ret i32 0
}
"""

_CALLER = "define i32 @broken(ptr %a, ptr %b, ptr %c) {{\n{}\n  ret i32 %r\n}}"
EXTRA = {
    "float": _CALLER.format("  %v = load float, ptr %a\n  %w = fmul float %v, %v\n  store float %w, ptr %b\n  %r = add i32 0, 0"),
    "foreign call": "declare i32 @puts(ptr)\n" + _CALLER.format("  %r = call i32 @puts(ptr %a)\n  store i32 %r, ptr %b"),
    "foreign data": "@environ = external global ptr\n" + _CALLER.format("  %p = load ptr, ptr @environ\n  %r = load i32, ptr %p"),
    "state": "@count = internal global i32 1\n" + _CALLER.format("  %v = load i32, ptr @count\n  %r = add i32 %v, 1\n  store i32 %r, ptr @count"),
    "absolute": "@table = internal constant [2 x ptr] [ptr @model_run, ptr @model_run_f32]\n"
    + _CALLER.format("  %i = load i64, ptr %a\n  %p = getelementptr ptr, ptr @table, i64 %i\n  %q = load ptr, ptr %p\n  %r = load i32, ptr %q"),
    "indirect": _CALLER.format("  %f = load ptr, ptr %a\n  %r = call i32 %f(ptr %b)\n  store i32 %r, ptr %b"),
    "recursion": _CALLER.format("  %s = call i32 @broken(ptr %b, ptr %a, ptr %c)\n  %r = add i32 %s, 1\n  store i32 %r, ptr %b"),
    "alloca": _CALLER.format(
        "  %n = load i64, ptr %a\n  %m = alloca i8, i64 %n\n  store volatile i8 1, ptr %m\n"
        "  %s = call i32 @model_run(ptr %m, ptr %b, ptr %c)\n  %r = add i32 %s, 1"
    ),
}


def compiled(ir: str, arch: str, os: str = "linux", features: str = "") -> bytes:
    """Position-independent object code of LLVM assembly text."""
    initialize()
    triple = TRIPLES[os].format("arm64" if (os, arch) == ("macos", "aarch64") else arch)
    module = llvm.parse_assembly(ir)
    module.triple = triple
    machine = llvm.Target.from_triple(triple).create_target_machine(features=features, opt=2, reloc="pic", codemodel="small")
    return bytes(machine.emit_object(module))


def toy(arch: str, os: str = "linux", extra: str = "") -> bytes:
    """The toy program, and one of EXTRA if named."""
    return compiled(TOY + EXTRA.get(extra, ""), arch, os)


def platform(arch: str = machine_arch(), os: str = "linux", features: tuple[str, ...] = ()) -> Platform:
    """A target for `arch` that asks nothing of the CPU."""
    return Platform(f"toy-{arch}", TRIPLES[os].format(arch), arch, os, features)


def answer(x: np.ndarray) -> np.ndarray:
    """What model_run computes for rows of eight."""
    return (x.astype(np.int64) @ WEIGHTS.astype(np.int64)).astype(np.int8).reshape(-1, 1)


def answer_f32(x: np.ndarray) -> np.ndarray:
    """What model_run_f32 computes."""
    return answer(np.clip(np.trunc(x * 8), -128, 127).astype(np.int8)).astype(np.float32) / 2


def rows(count: int, seed: int = 0) -> np.ndarray:
    """Random int8 inputs."""
    return np.random.default_rng(seed).integers(-128, 128, (count, 8), np.int8)
