"""Artifacts: complete, right for C, C++ and each archive format, and replaced as a whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import subprocess
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import which

import numpy as np
import pytest
from toy_objects import ARCHITECTURES, INTERFACE, X, Y, answer, answer_f32, platform, rows, toy

from qcompiler import runtime
from qcompiler.backends import atomic, link, package
from qcompiler.backends.package import Artifact, write_artifact
from qcompiler.errors import ProofError, UsageError
from qcompiler.runtime.artifact import Interface, Tensor, read_manifest
from qcompiler.runtime.cpu import machine_arch

HOST = machine_arch()
needs_cc = pytest.mark.skipif(which("cc") is None, reason="no C compiler")
needs_ar = pytest.mark.skipif(which("llvm-nm") is None or which("llvm-ar") is None, reason="llvm-nm and llvm-ar are not installed")


def artifact(arch: str = HOST, os: str = "linux", interface: Interface = INTERFACE, **more: object) -> Artifact:
    if os == "linux":
        return replace(Artifact.of_elf(toy(arch), interface, platform(arch)), **more)
    return Artifact(toy(arch, os), interface, platform(arch, os), None)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_an_artifact_is_complete_and_its_digests_hold(arch: str, tmp_path: Path) -> None:
    manifest = write_artifact(tmp_path / "new" / "model", artifact(arch, report={"layers": []}, certificate={"ok": True}))
    folder = tmp_path / "new" / "model"
    assert {"model.o", "model.a", "model.h", "model.img"} <= set(manifest.files)
    assert {p.name for p in folder.iterdir()} == {"manifest.json", *manifest.files}
    assert read_manifest(folder) == manifest
    for name, facts in manifest.files.items():
        content = (folder / name).read_bytes()
        assert facts == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "crc32": zlib.crc32(content)}
    written = json.loads((folder / "manifest.json").read_text())
    assert (written["format"], written["report"], written["certificate"]) == (1, {"layers": []}, {"ok": True})
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def test_the_same_program_is_written_to_the_same_bytes(tmp_path: Path) -> None:
    a, b = (write_artifact(tmp_path / name, artifact()).files for name in "ab")
    assert a == b


def test_further_files_are_part_of_the_artifact(tmp_path: Path) -> None:
    for content in (b"one", b"two"):
        write_artifact(tmp_path / "model", artifact(extra={"model.graph": content}), share=False)
    assert (tmp_path / "model" / "model.graph").read_bytes() == b"two"
    assert runtime.damaged_files(tmp_path / "model") == {}


@needs_cc
@pytest.mark.parametrize(
    "compiler", [["cc", "-std=c89"], ["cc", "-std=c99"], ["c++", "-xc++", "-std=c++98"], ["c++", "-xc++", "-std=c++17"]], ids=" ".join
)
@pytest.mark.parametrize("name", ["image", "a*/b /* c \\", 'naïve "quotes" ??/', "line\nbreak // %s"])
def test_the_header_is_clean(compiler: list[str], name: str, tmp_path: Path) -> None:
    if which(compiler[0]) is None:
        pytest.skip(f"no {compiler[0]}")
    interface = Interface("model", 128, 8, (Tensor(name, (1, 8), scale=1e-05, zero_point=-3), Tensor("scalar", ())), (Y,))
    write_artifact(tmp_path / "model", artifact(interface=interface), share=False)
    source = """#include "model.h"
#include "model.h"
static const int shape[] = MODEL_INPUT_0_SHAPE;
static const double scale[] = {MODEL_INPUT_0_SCALE, MODEL_INPUT_0_ZERO_POINT, MODEL_ARENA_ALIGNMENT, MODEL_WEIGHTS_SIZE};
int use(void *arena);
int use(void *arena) {
    return model_run(0, 0, arena) + model_run_f32(0, 0, arena) + shape[MODEL_INPUT_0_RANK - 1] + (int)scale[0] + MODEL_INPUT_1_SIZE;
}
"""
    (tmp_path / "use.c").write_text(source)
    command = [*compiler, "-pedantic", "-Wall", "-Wextra", "-Wundef", "-Werror", f"-I{tmp_path / 'model'}", "-c", "use.c", "-o", "use.o"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


PROGRAM = """#include <stdio.h>
#include "model.h"
static union { double align; unsigned char bytes[MODEL_ARENA_SIZE + MODEL_ARENA_ALIGNMENT]; } memory;
int main(void) {
    signed char input[MODEL_INPUT_0_SIZE], output[MODEL_OUTPUT_0_SIZE];
    float real[MODEL_INPUT_0_SIZE], result[MODEL_OUTPUT_0_SIZE];
    const void *inputs[MODEL_INPUT_COUNT];
    void *outputs[MODEL_OUTPUT_COUNT];
    unsigned char *arena = memory.bytes;
    int i;
    while ((unsigned long)arena % MODEL_ARENA_ALIGNMENT) arena++;
    while (fread(input, 1, sizeof input, stdin) == sizeof input) {
        for (i = 0; i < MODEL_INPUT_0_SIZE; i++) real[i] = (float)((input[i] - MODEL_INPUT_0_ZERO_POINT) * MODEL_INPUT_0_SCALE);
        inputs[0] = input, outputs[0] = output;
        if (model_run(inputs, outputs, arena)) return 1;
        inputs[0] = real, outputs[0] = result;
        if (model_run_f32(inputs, outputs, arena)) return 1;
        printf("%d %g\\n", output[0], (double)result[0]);
    }
    return 0;
}
"""


@needs_cc
@pytest.mark.parametrize("linked", ["model.a", "model.o"])
def test_a_c_program_links_the_library_and_gets_the_same_results(linked: str, tmp_path: Path) -> None:
    write_artifact(tmp_path / "model", artifact(), share=False)
    (tmp_path / "main.c").write_text(PROGRAM)
    subprocess.run(["cc", "-std=c89", "-Wall", "-Werror", "-Imodel", "main.c", f"model/{linked}", "-o", "main"], cwd=tmp_path, check=True)
    x = rows(20)
    done = subprocess.run([tmp_path / "main"], input=x.tobytes(), capture_output=True, check=True)
    found = np.array(done.stdout.split(), np.float64).reshape(20, 2)
    program = runtime.load(tmp_path / "model")
    assert np.array_equal(found[:, :1], program.run_integer({"x": x})["y"])
    assert np.array_equal(found[:, 1:], program.run({"x": x.astype(np.float32) / 8})["y"])


@needs_cc
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_shared_library_is_linked_where_a_linker_is_found(arch: str, tmp_path: Path) -> None:
    manifest = write_artifact(tmp_path / "model", artifact(arch))
    if arch != HOST and which(f"{arch}-linux-gnu-gcc") is None:
        pytest.skip(f"no linker for {arch}")
    assert "model.so" in manifest.files
    assert b"GLIBC" not in (tmp_path / "model" / "model.so").read_bytes()


def test_without_a_linker_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "which", lambda name: None)
    monkeypatch.setattr(link, "find_spec", lambda name: None)
    assert "model.so" not in write_artifact(tmp_path / "model", artifact()).files
    x = rows(2)
    assert np.array_equal(runtime.load(tmp_path / "model").run_integer({"x": x})["y"], answer(x))


def test_a_linker_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "linkers", lambda target: iter([["false"], ["/no/such/linker"]]))
    assert "model.so" not in write_artifact(tmp_path / "model", artifact()).files


@needs_ar
@pytest.mark.parametrize(
    "arch, os, library, member, underscore",
    [
        ("x86_64", "linux", "model.a", "model.o", ""),
        ("aarch64", "linux", "model.a", "model.o", ""),
        ("x86_64", "windows", "model.lib", "model.obj", ""),
        ("x86_64", "macos", "model.a", "model.o", "_"),
        ("aarch64", "macos", "model.a", "model.o", "_"),
    ],
)
def test_archives_are_read_by_llvm(arch: str, os: str, library: str, member: str, underscore: str, tmp_path: Path) -> None:
    write_artifact(tmp_path / "model", artifact(arch, os), share=False)
    path = tmp_path / "model" / library
    index = subprocess.run(["llvm-nm", "--print-armap", path], capture_output=True, text=True, check=True).stdout.partition("\n\n")[0]
    assert index == f"Archive map\n{underscore}model_run in {member}\n{underscore}model_run_f32 in {member}"
    subprocess.run(["llvm-ar", "x", path, member], cwd=tmp_path, check=True)
    extracted = (tmp_path / member).read_bytes()
    assert extracted.rstrip(b"\0\n") == toy(arch, os).rstrip(b"\0\n")


# Nothing is destroyed.


def program_of(folder: Path) -> np.ndarray:
    return runtime.load(folder).run_integer({"x": rows(3)})["y"]


def interrupted(kind: BaseException) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise kind

    return fail


FAILURES = [(OSError(errno.ENOSPC, "No space left on device"), UsageError), (KeyboardInterrupt(), KeyboardInterrupt), (MemoryError(), MemoryError)]
PLACES = [(package, "_share"), (package, "_manifest"), (package, "header"), (atomic, "_publish")]


@pytest.mark.parametrize("failure, raised", FAILURES, ids=["full disk", "ctrl-c", "memory"])
@pytest.mark.parametrize("where", PLACES, ids=[name for _, name in PLACES])
def test_after_a_failure_the_earlier_artifact_is_whole(
    failure: BaseException, raised: type[BaseException], where: tuple[object, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    write_artifact(folder, artifact(), share=False)
    monkeypatch.setattr(*where, interrupted(failure))
    with pytest.raises(raised) as caught:
        write_artifact(folder, artifact())
    assert raised is not UsageError or "No space left" in str(caught.value)
    assert runtime.damaged_files(folder) == {}
    assert np.array_equal(program_of(folder), answer(rows(3)))
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_file_that_cannot_grow_is_reported(tmp_path: Path) -> None:
    """The operating system itself refuses: files may have 2000 bytes, the image has 8192."""
    resource = pytest.importorskip("resource")
    write_artifact(tmp_path / "model", artifact(), share=False)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(UsageError, match=r"cannot write .*File too large"):
            write_artifact(tmp_path / "model", artifact(), share=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert runtime.damaged_files(tmp_path / "model") == {}
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_after_a_failure_nothing_new_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "_manifest", interrupted(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        write_artifact(tmp_path / "model", artifact())
    assert list(tmp_path.iterdir()) == []


def test_a_program_in_use_survives_its_replacement(tmp_path: Path) -> None:
    write_artifact(tmp_path / "model", artifact())
    program = runtime.load(tmp_path / "model")
    write_artifact(tmp_path / "model", artifact())
    assert np.array_equal(program.run_integer({"x": rows(3)})["y"], answer(rows(3)))


@pytest.mark.parametrize("exchange", [True, False])
def test_an_artifact_is_replaced_with_or_without_exchange(exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:
        monkeypatch.setattr(atomic, "_exchange_call", lambda: None)
    write_artifact(tmp_path / "model", artifact(), share=False)
    (tmp_path / "model" / "model.o").write_bytes(b"damaged")
    write_artifact(tmp_path / "model", artifact(), share=False)
    assert runtime.damaged_files(tmp_path / "model") == {}
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_swap_that_fails_half_way_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, rename = tmp_path / "model", Path.rename
    write_artifact(folder, artifact(), share=False)

    def second_fails(self: Path, target: Path) -> Path:
        if self.name.startswith(".model.") and not self.name.endswith(".old"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(atomic, "_exchange_call", lambda: None)
    monkeypatch.setattr(Path, "rename", second_fails)
    with pytest.raises(UsageError, match="Input/output error"):
        write_artifact(folder, artifact(), share=False)
    assert np.array_equal(program_of(folder), answer(rows(3)))
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_somebodys_files_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"holds 'notes.txt', which is no part of an artifact"):
        write_artifact(tmp_path, artifact())
    with pytest.raises(UsageError, match="expected a folder for the artifact, found the file"):
        write_artifact(tmp_path / "notes.txt", artifact())
    with pytest.raises(UsageError, match="cannot write"):
        write_artifact(tmp_path / "notes.txt" / "model", artifact())
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "model").symlink_to("real")
    write_artifact(tmp_path / "model", artifact(), share=False)
    assert (tmp_path / "model").is_symlink()
    assert (tmp_path / "real" / "manifest.json").is_file()


@pytest.mark.parametrize("prefix", ["", "2x", "a b", "x;y", "naïve"])
def test_the_prefix_must_be_a_name_in_c(prefix: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected a C identifier"):
        write_artifact(tmp_path / "model", artifact(interface=Interface(prefix, 0, 0, (X,), (Y,))))


def test_an_object_that_is_not_self_contained_is_no_artifact() -> None:
    with pytest.raises(ProofError, match="puts"):
        Artifact.of_elf(toy(HOST, extra="foreign call"), INTERFACE, platform())


def test_the_toy_is_as_defined(tmp_path: Path) -> None:
    write_artifact(tmp_path / "model", artifact())
    x = rows(40)
    assert np.array_equal(runtime.load(tmp_path / "model").run_integer({"x": x})["y"], answer(x))
    assert np.array_equal(runtime.load(tmp_path / "model").run({"x": x / 4.0})["y"], answer_f32(x / 4.0))
