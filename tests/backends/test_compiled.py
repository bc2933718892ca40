"""Programs of the code generator: certified for every target, and run from image, library and emulator with the bits of the reference."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest
from guarded import Guarded
from integer_graphs import Builder

from qcompiler import runtime
from qcompiler.backends import emulate, qemu, reference
from qcompiler.backends.certificate import certify
from qcompiler.backends.disassemble import disassemble
from qcompiler.backends.image import flatten
from qcompiler.backends.llvm.lower import ObjectCode, compile_object
from qcompiler.backends.llvm.target import TARGETS, Target, initialize
from qcompiler.backends.package import Artifact, write_artifact
from qcompiler.ir.graph import Graph

HERE = [t for t in TARGETS.values() if t.runs_here]
EMULATED = [t for t in TARGETS.values() if t.arch == "aarch64" and not t.runs_here]


@cache
def network() -> Graph:
    """A small residual block: strided, depthwise and pointwise convolutions, an addition, a table, a pooling, a dense layer."""
    b = Builder(3)
    y = b.conv(b.input(1, 15, 15, 3), 16, (3, 3), strides=(2, 2), pads=((1, 1), (1, 1)))
    z = b.conv(b.depthwise(y, (3, 3), pads=((1, 1), (1, 1))), 16, (1, 1))
    pooled = b.max_pool(b.lookup(b.add(y, z)), (2, 2), (2, 2))
    return b.graph(b.reshape(b.conv(pooled, 10, (4, 4)), 1, 10))


@cache
def compiled(target: Target) -> ObjectCode:
    return compile_object(network(), target)


@cache
def samples() -> np.ndarray:
    return np.random.default_rng(1).integers(-128, 128, (3, 15, 15, 3), np.int8)


def name_of(tensors: tuple[runtime.Tensor, ...]) -> str:
    (tensor,) = tensors
    return tensor.name


def check(program: runtime.Program) -> None:
    """`run_integer` is the reference; `run` is the same between quantization and dequantization."""
    x, y = program.inputs[0], program.outputs[0]
    found = program.run_integer({x.name: samples()})[y.name]
    expected = np.concatenate([reference.run(network(), {x.name: s[None]})[y.name] for s in samples()])
    assert np.array_equal(found, expected)
    assert len(np.unique(found)) > 5
    real = program.run({x.name: np.float32(x.scale) * (samples().astype(np.float32) - x.zero_point)})[y.name]
    assert np.array_equal(real, np.float32(y.scale) * (found.astype(np.float32) - y.zero_point))


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda t: t.name)
def test_programs_are_certified(target: Target) -> None:
    certificate = certify(compiled(target).object, "model_run", target.arch)
    assert certificate.ok, "; ".join(map(str, certificate.findings[:5]))
    assert certificate.instructions > 200
    assert certificate.stack_bytes < 8192
    assert not certify(compiled(target).object, "model_run_f32").ok


def listed(assembly: str) -> dict[str, list[str]]:
    """Function -> mnemonics of an assembler text, padding left out."""
    functions: dict[str, list[str]] = {}
    for line in assembly.splitlines():
        if label := re.match(r"(model_\w+):", line):
            functions[label[1]] = current = []
        elif re.match(r"\t\w|\t\{", line):
            current += [word for word in line.split()[:2] if word[0] != "{"][:1]
    return {name: [m for m in mnemonics if not m.startswith("nop")] for name, mnemonics in functions.items() if mnemonics}


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda t: t.name)
def test_the_disassembly_is_what_llvm_wrote(target: Target) -> None:
    """Object and assembler text of the same module: two writers and an independent reader agree on every function."""
    initialize()
    text = compiled(target).llvm
    image = flatten(bytes(target.machine().emit_object(llvm.parse_assembly(text))))
    written = listed(str(target.machine().emit_assembly(llvm.parse_assembly(text))))
    read = {f.name: disassemble(image.arch, image.data[f.offset : f.offset + f.size], f.offset) for f in image.functions}
    found = {name: [i.mnemonic for i in body if not i.mnemonic.startswith("nop")] for name, body in read.items()}
    assert {n: len(m) for n, m in found.items()} == {n: len(m) for n, m in written.items()}
    assert target.arch != "aarch64" or found == written  # x86 mnemonics are AT&T's in LLVM's text


@pytest.mark.parametrize("target", HERE, ids=lambda t: t.name)
def test_native_programs_touch_nothing_but_their_buffers(target: Target) -> None:
    code = compiled(target)
    image = flatten(code.object)
    native = runtime.NativeExecutor.of_image(image.data, image.entries)
    check(runtime.Program(code.interface, native))
    check(runtime.Program(code.interface, Guarded(native)))


@pytest.mark.parametrize("target", EMULATED, ids=lambda t: t.name)
def test_foreign_programs_run_under_emulation(target: Target) -> None:
    if not emulate.emulates(target.arch, target.features) and qemu.missing_tools(target.arch):
        pytest.skip(f"not installed: {', '.join(qemu.missing_tools(target.arch))}")
    code = compiled(target)
    check(emulate.emulated(code.interface, flatten(code.object), target.features))


@pytest.mark.parametrize("share", [True, False])
def test_artifacts_run_as_they_were_compiled(share: bool, tmp_path: Path) -> None:
    code = compiled(HERE[-1])
    write_artifact(tmp_path / "model", Artifact.of_elf(code.object, code.interface, code.target), share)
    check(runtime.load(tmp_path / "model"))


@pytest.mark.parametrize("os", ["linux", "android", "macos", "windows"])
@pytest.mark.parametrize("name", ["x86-64-avx2", "arm64-dotprod"])
def test_artifacts_of_every_system_are_written(name: str, os: str, tmp_path: Path) -> None:
    code = compile_object(network(), TARGETS[name].for_os(os))
    image = flatten(code.object) if code.object[:4] == b"\x7fELF" else None
    files = write_artifact(tmp_path / "model", Artifact(code.object, code.interface, code.target, image)).files
    assert {"model.h", *({"model.obj", "model.lib"} if os == "windows" else {"model.o", "model.a"})} <= set(files)
    assert ("model.img" in files) == (os in ("linux", "android"))
