"""Programs that take integers: the bits of the reference inside of the vocabulary, and refusal outside of it, before anything is read or written."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path
from shutil import which

import numpy as np
import pytest
from guarded import Guarded
from integer_graphs import Builder

from qcompiler import runtime
from qcompiler.backends import emulate, qemu, reference
from qcompiler.backends.certificate import certify
from qcompiler.backends.image import flatten, lay_out
from qcompiler.backends.llvm.lower import ObjectCode, compile_object
from qcompiler.backends.llvm.target import TARGETS, Target
from qcompiler.backends.package import Artifact, write_artifact
from qcompiler.errors import UnsupportedModel
from qcompiler.ir.graph import Graph
from qcompiler.ir.ops import Gather
from qcompiler.ir.types import DType
from qcompiler.runtime import InputError, MachineError
from qcompiler.runtime.arena import allocate
from qcompiler.runtime.errors import OutOfRange

HERE = [t for t in TARGETS.values() if t.runs_here]
BY_MEANING = [t.generic() for t in TARGETS.values() if not t.runs_here]
EMULATED = [t for t in TARGETS.values() if t.arch == "aarch64" and not t.runs_here]
ROWS, KINDS, LENGTH = 50, 2, 13
SIZES = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17)
BAD = (ROWS, -ROWS - 1, 1 << 31, -(1 << 31) - 1, (1 << 63) - 1, -(1 << 63), ROWS + (1 << 32))


def named(t: Target) -> str:
    return t.name


@cache
def network() -> Graph:
    """An activation, tokens (int64) and their kinds (int32): two tables, added to the activation and to each other."""
    b = Builder(5)
    x, tokens, kinds = b.input(1, LENGTH, 24), b.ids(1, LENGTH, rows=ROWS), b.ids(1, LENGTH, rows=KINDS, dtype=DType.i32)
    embedded = b.add(b.embedding(tokens, ROWS, 24), b.embedding(kinds, KINDS, 24), x)
    return b.graph(b.add(embedded, embedded), b.embedding(b.reshape(tokens, LENGTH), ROWS + 9, 16))


@cache
def compiled(target: Target) -> ObjectCode:
    return compile_object(network(), target)


def feeds(count: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs by name, with both ends of each vocabulary at the first and the last place."""
    generator = np.random.default_rng(seed)
    x, tokens, kinds = (t.name for t in compiled(HERE[0]).interface.inputs)
    ids = generator.integers(-ROWS, ROWS, (count, LENGTH))
    ids[:, 0], ids[:, -1] = -ROWS, ROWS - 1
    types = generator.integers(-KINDS, KINDS, (count, LENGTH)).astype(np.int32)
    return {x: generator.integers(-128, 128, (count, LENGTH, 24), np.int8), tokens: ids, kinds: types}


def native(target: Target) -> runtime.Program:
    code = compiled(target)
    image = lay_out(code.object)  # by meaning, the float entry may want a function of libm
    return runtime.Program.of_image(code.interface, image.data, image.entries)


def foreign(target: Target) -> runtime.Program:
    if not emulate.emulates(target.arch, target.features) and qemu.missing_tools(target.arch):
        pytest.skip(f"not installed: {', '.join(qemu.missing_tools(target.arch))}")
    code = compiled(target)
    return emulate.emulated(code.interface, flatten(code.object), target.features)


def check(program: runtime.Program, floats: bool = True) -> None:
    """The integer entry gives the reference, the float entry the same dequantized."""
    given = feeds()
    found = program.run_integer(given)
    rows = [{name: a[i : i + 1] for name, a in given.items()} for i in range(3)]
    for name in network().output_names:
        assert np.array_equal(found[name], np.concatenate([reference.run(network(), row)[name] for row in rows]))
    real = program.run(_real(program, given)) if floats else {}
    for t in program.outputs if floats else ():
        assert t.scale is not None
        assert np.array_equal(real[t.name], np.float32(t.scale) * (found[t.name].astype(np.float32) - t.zero_point))


def _real(program: runtime.Program, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same with the quantized input as real numbers."""
    x = program.inputs[0]
    assert x.scale is not None
    return {**given, x.name: np.float32(x.scale) * (given[x.name].astype(np.float32) - x.zero_point)}


def check_refusals(program: runtime.Program, floats: bool = True) -> None:
    """Each bad token is named, wherever it stands, by the integer and the float entry; then all is as before."""
    tokens, kinds = program.inputs[1].name, program.inputs[2].name
    for place, bad in enumerate(BAD):
        given = feeds()
        given[tokens][1, place * 2] = bad
        with pytest.raises(InputError, match=rf"input '{tokens}': expected integers in \[-50, 49\], found {bad} at \[0, {2 * place}\] of sample 1"):
            program.run_integer(given)
        if floats:
            with pytest.raises(InputError, match=f"found {bad} at"):
                program.run(_real(program, given))
    given = feeds()
    given[kinds][0, 3] = KINDS
    with pytest.raises(InputError, match=rf"input '{kinds}': expected integers in \[-2, 1\], found 2 at \[0, 3\]$"):
        program.run_integer(given)
    check(program, floats)


@pytest.mark.parametrize("target", HERE + BY_MEANING, ids=named)
def test_native_programs_are_exact_and_refuse(target: Target) -> None:
    program, floats = native(target), target in HERE
    check(program, floats)
    check_refusals(program, floats)
    check_refusals(runtime.Program(program.interface, Guarded(program.executor)), floats)


@pytest.mark.parametrize("target", HERE, ids=named)
def test_threads_are_exact_and_refuse(target: Target) -> None:
    program = native(target)
    program.threads = 2
    assert program.threads == 2
    check_refusals(program)


@pytest.mark.parametrize("target", EMULATED, ids=named)
def test_foreign_programs_are_exact_and_refuse(target: Target) -> None:
    program = foreign(target)
    check_refusals(program)


@pytest.mark.parametrize("entry", ["model_run", "model_run_f32", "model_run_parallel", "model_run_f32_parallel"])
def test_a_refusal_says_which_input_and_writes_nothing(entry: str) -> None:
    program = native(HERE[0])
    executor = program.executor
    assert isinstance(executor, runtime.NativeExecutor)
    given = feeds(1)
    x, tokens, kinds = given.values()
    if "f32" in entry:
        x = x.astype(np.float32)
    outputs = [np.full(t.shape, 77, t.dtype if "f32" in entry else t.storage) for t in program.outputs]
    arena = allocate(program.interface.arena_size)
    arena[...] = 0xA5
    call = executor.divided(entry, 0, 0) if "parallel" in entry else lambda i, o, a: executor.call(entry, i, o, a)
    for index, array in ((1, tokens), (2, kinds)):
        good, array[0, -1] = int(array[0, -1]), ROWS
        with pytest.raises(OutOfRange) as refused:
            call([x, tokens, kinds], outputs, arena)
        assert refused.value.index == index
        array[0, -1] = good
    assert all((o == 77).all() for o in outputs)
    assert (arena == 0xA5).all()


@pytest.mark.parametrize("dtype", [DType.i32, DType.i64], ids=lambda d: d.name)
@pytest.mark.parametrize("target", HERE, ids=named)
def test_every_element_is_checked(target: Target, dtype: DType) -> None:
    """One bad element at each place of inputs of many lengths."""
    b = Builder(1)
    ids = [b.ids(n, rows=ROWS, dtype=dtype) for n in SIZES]
    code = compile_object(b.graph(*(b.embedding(i, ROWS, 4) for i in ids)), target)
    image = flatten(code.object)
    executor = Guarded(runtime.NativeExecutor.of_image(image.data, image.entries))
    outputs = [np.empty(t.shape, t.storage) for t in code.interface.outputs]
    arena = allocate(code.interface.arena_size)
    arrays = [np.full(n, ROWS - 1, dtype.numpy) for n in SIZES]
    executor.call("model_run", arrays, outputs, arena)
    for index, array in enumerate(arrays):
        for place in range(len(array)):
            for bad in (ROWS, -ROWS - 1):
                array[place] = bad
                with pytest.raises(OutOfRange) as refused:
                    executor.call("model_run", arrays, outputs, arena)
                assert refused.value.index == index
            array[place] = -ROWS


@pytest.mark.parametrize("target", TARGETS.values(), ids=named)
def test_the_check_is_certified(target: Target) -> None:
    code = compiled(target)
    for entry, callback in (("model_run", False), ("model_run_parallel", True)):
        certificate = certify(code.object, entry, target.arch, callback)
        assert certificate.ok, "; ".join(map(str, certificate.findings[:5]))
        assert "model_check" in certificate.functions


PROGRAM = """#include <stdint.h>
#include <stdio.h>
#include "model.h"
static union { double align; unsigned char bytes[MODEL_ARENA_SIZE + MODEL_ARENA_ALIGNMENT]; } memory;
static signed char x[MODEL_INPUT_0_SIZE], y[MODEL_OUTPUT_0_SIZE], z[MODEL_OUTPUT_1_SIZE];
static int64_t tokens[MODEL_INPUT_1_SIZE];
static int32_t kinds[MODEL_INPUT_2_SIZE];
int main(void) {
    const void *inputs[] = {x, tokens, kinds};
    void *outputs[] = {y, z};
    unsigned char *arena = memory.bytes;
    while ((uintptr_t)arena % MODEL_ARENA_ALIGNMENT) arena++;
    tokens[3] = MODEL_INPUT_1_HIGH;
    kinds[0] = MODEL_INPUT_2_LOW;
    printf("%d ", model_run(inputs, outputs, arena));
    kinds[0]--;
    printf("%d ", model_run(inputs, outputs, arena));
    tokens[3]++;
    printf("%d %d", model_run(inputs, outputs, arena), MODEL_OUT_OF_RANGE);
    return 0;
}
"""


@pytest.mark.skipif(which("cc") is None, reason="no C compiler")
def test_the_header_tells_the_intervals(tmp_path: Path) -> None:
    code = compiled(HERE[-1])
    write_artifact(tmp_path / "model", Artifact.of_elf(code.object, code.interface, code.target), share=False)
    assert f"'{code.interface.inputs[1].name}': int64_t const *, 1 x 13 */" in (tmp_path / "model" / "model.h").read_text()
    (tmp_path / "main.c").write_text(PROGRAM)
    subprocess.run(["cc", "-std=c99", "-Wall", "-Werror", "-Imodel", "main.c", "model/model.o", "-o", "main"], cwd=tmp_path, check=True)
    assert subprocess.run([tmp_path / "main"], capture_output=True, check=True).stdout.split() == [b"0", b"514", b"258", b"2"]
    loaded = runtime.load(tmp_path / "model")
    assert loaded.interface == code.interface
    check_refusals(loaded)


def test_intervals_are_the_tightest() -> None:
    inputs = compiled(HERE[0]).interface.inputs
    assert [(t.dtype, t.storage, t.low, t.high) for t in inputs] == [
        ("float32", "int8", None, None),
        ("int64", "int64", -ROWS, ROWS - 1),
        ("int32", "int32", -KINDS, KINDS - 1),
    ]


def test_programs_without_integers_have_no_check() -> None:
    b = Builder(2)
    code = compile_object(b.graph(b.conv(b.input(1, 4, 4, 8), 8)), HERE[0])
    assert "check" not in code.llvm


def test_indices_that_are_not_known_to_fit_are_not_compiled() -> None:
    b = Builder(3)
    table = b.const(np.array([0, 9, -3]))
    inner = b.apply(Gather(0), table, b.ids(4, rows=3))
    compile_object(b.graph(b.embedding(inner, 10, 5)), HERE[0])
    with pytest.raises(UnsupportedModel, match=r"holds indices in \[-3, 9\], expected \[-9, 8\]"):
        compile_object(b.graph(b.embedding(inner, 9, 5)), HERE[0])


def test_arrays_of_other_kinds() -> None:
    """int32 for int64 and the other way round where they fit; never real numbers."""
    program = native(HERE[0])
    given = feeds()
    x, tokens, kinds = given
    expected = program.run_integer(given)
    swapped = {x: given[x], tokens: given[tokens].astype(np.int32), kinds: given[kinds].astype(np.int64)}
    for name, found in program.run_integer(swapped).items():
        assert np.array_equal(found, expected[name])
    with pytest.raises(InputError, match=r"expected int32, found int64 in \[0, 4294967296\], which does not fit"):
        program.run_integer({**given, kinds: np.array([[0] * 12 + [1 << 32]] * 3)})
    with pytest.raises(InputError, match=f"input '{tokens}': expected int64, found float64"):
        program.run_integer({**given, tokens: given[tokens].astype(float)})


def test_a_length_that_was_not_compiled_is_told() -> None:
    program = native(HERE[0])
    given = feeds()
    tokens = program.inputs[1].name
    with pytest.raises(InputError, match=f"the length 13 was compiled, not 20; .* compile with --shape {tokens}=1,20"):
        program.run_integer({**given, tokens: np.zeros((3, 20), np.int64)})
    with pytest.raises(InputError, match="expected the same batch"):
        program.run_integer({**given, tokens: np.zeros((2, 13), np.int64)})


def test_a_status_that_is_no_refusal_is_a_failure() -> None:
    with pytest.raises(MachineError, match="found 7"):
        runtime.executor.check_status("model_run", 7)
