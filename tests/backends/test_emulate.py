"""Programs under emulation: the same answers as the definition, and mistakes that show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from toy_objects import ARCHITECTURES, INTERFACE, TOY, answer, answer_f32, compiled, platform, rows, toy

from qcompiler.api import build, quantize_model
from qcompiler.backends import emulate, qemu
from qcompiler.backends.emulate import UnicornExecutor, emulated
from qcompiler.backends.image import flatten
from qcompiler.backends.package import Artifact, write_artifact
from qcompiler.runtime import MachineError, Program

FOREIGN = "aarch64" if platform().arch == "x86_64" else "x86_64"
MOBILENET = Path(__file__).resolve().parents[3] / "shared" / "zoo" / "imagenet_mobilenetv2.onnx"
needs_qemu = pytest.mark.skipif(bool(qemu.missing_tools("aarch64")), reason=f"not installed: {', '.join(qemu.missing_tools('aarch64'))}")


def unicorn_program(arch: str, ir: str = TOY) -> Program:
    return emulated(INTERFACE, flatten(compiled(ir, arch)))


def check(program: Program) -> None:
    x = rows(5)
    assert np.array_equal(program.run_integer({"x": x})["y"], answer(x))
    real = np.linspace(-20, 20, 24, dtype=np.float32).reshape(3, 8)
    assert np.array_equal(program.run({"x": real})["y"], answer_f32(real))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_unicorn_runs_images_of_both_architectures(arch: str) -> None:
    check(unicorn_program(arch))


@needs_qemu
def test_qemu_runs_images() -> None:
    check(emulated(INTERFACE, flatten(toy("aarch64")), ("neon", "i8mm")))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_artifacts_of_any_architecture_are_loaded(arch: str, tmp_path: Path) -> None:
    write_artifact(tmp_path / "model", Artifact.of_elf(toy(arch), INTERFACE, platform(arch)), share=False)
    check(emulate.load(tmp_path / "model"))


@needs_qemu
def test_artifacts_that_unicorn_cannot_run_go_to_qemu(tmp_path: Path) -> None:
    if FOREIGN != "aarch64":
        pytest.skip("this machine runs arm64 itself")
    write_artifact(tmp_path / "model", Artifact.of_elf(toy("aarch64"), INTERFACE, platform("aarch64", features=("neon", "i8mm"))), share=False)
    program = emulate.load(tmp_path / "model")
    assert isinstance(program.executor, qemu.QemuExecutor)
    check(program)


def test_missing_emulators_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu, "which", lambda tool: None)
    with pytest.raises(MachineError, match="needs qemu-aarch64"):
        emulated(INTERFACE, flatten(toy("aarch64")), ("i8mm",))


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(
    "before, after",
    [
        ("load <8 x i8>, ptr %x, align 1", "load <8 x i8>, ptr %beyond, align 1"),
        ("store i8 %byte, ptr %y", "store i8 %byte, ptr %x"),
        ("store i8 %byte, ptr %y", "store i8 %byte, ptr @weights"),
        ("store i8 %byte, ptr %y", "store i32 %sum, ptr %y, align 1"),
    ],
    ids=["reads past an input", "writes an input", "writes a constant", "writes past an output"],
)
def test_stray_accesses_are_caught(arch: str, before: str, after: str) -> None:
    beyond = "%beyond = getelementptr i8, ptr %x, i32 1\n  "
    broken = TOY.replace(before, after, 1).replace("%v = load <8 x i8>", f"{beyond}%v = load <8 x i8>")
    with pytest.raises(MachineError, match=r"emulating model_run stopped: .*at 0x"):
        unicorn_program(arch, broken).run_integer({"x": rows(1)})


def test_a_program_that_fails_says_so() -> None:
    with pytest.raises(MachineError, match="expected model_run to return 0, found 7"):
        unicorn_program("aarch64", TOY.replace("ret i32 0", "ret i32 7", 1)).run_integer({"x": rows(1)})


def test_instructions_are_counted_on_arm() -> None:
    """The loop of `inner` is six or so instructions, run eight times a call."""
    program = unicorn_program("aarch64")
    assert isinstance(program.executor, UnicornExecutor)
    counts = []
    for calls in (1, 2):
        with program.executor.counting():
            program.run_integer({"x": rows(calls)})
        counts.append(program.executor.instructions)
    assert 40 < counts[0] < 100
    assert counts[1] == 2 * counts[0]
    with pytest.raises(MachineError, match="expected an arm64 program"), UnicornExecutor.of_image(bytes(4096), {}, "x86_64").counting():
        pass


def test_the_arena_is_the_callers_memory() -> None:
    from qcompiler.runtime.arena import allocate

    arena, y = allocate(INTERFACE.arena_size), np.zeros((1, 1), np.int8)
    image = flatten(toy("aarch64"))
    UnicornExecutor.of_image(image.data, image.entries, "aarch64").call("model_run", [rows(1)], [y], arena)
    assert np.array_equal(arena[:8].view(np.int8), rows(1)[0])


def test_a_mapped_image_is_not_copied(tmp_path: Path) -> None:
    from qcompiler.runtime.memory import map_file

    (tmp_path / "model.img").write_bytes(flatten(toy("aarch64")).data)
    code = map_file(tmp_path / "model.img")
    assert UnicornExecutor(code, {}, "aarch64")._image is code


@needs_qemu
@pytest.mark.slow
@pytest.mark.skipif(not MOBILENET.is_file(), reason="needs the networks of ../shared/zoo")
def test_a_large_network_in_the_static_runner_gives_the_bits_of_this_machine() -> None:
    model = quantize_model(MOBILENET)
    here, there = build(model), build(model, "arm64")
    runner = Program(there.interface, qemu.QemuExecutor(there.image.data, there.image.entries, there.image.arch))
    feeds = {v.name: np.random.default_rng(0).standard_normal(v.shape).astype(np.float32) for v in here.interface.inputs}
    made, expected = runner.run(feeds), here.run(feeds)
    assert list(made) == list(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(made[name], values, strict=True)
