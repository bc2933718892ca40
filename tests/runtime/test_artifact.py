"""Loading artifacts: what is verified, what is refused and how, and what is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_objects import INTERFACE, answer, platform, rows, toy

from qcompiler import runtime
from qcompiler.backends.package import Artifact, write_artifact
from qcompiler.runtime import ArtifactError, MachineError, cpu
from qcompiler.runtime.arena import allocate
from qcompiler.runtime.artifact import Manifest, Platform, digest, read_manifest
from qcompiler.runtime.executor import NativeExecutor
from qcompiler.runtime.memory import map_bytes, map_file

HOST = cpu.machine_arch()


def write(folder: Path, share: bool = False, target: Platform | None = None) -> Path:
    target = target or platform()
    write_artifact(folder / "model", Artifact.of_elf(toy(target.arch), INTERFACE, target), share)
    return folder / "model"


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    data = json.loads((folder / "manifest.json").read_text())
    change(data)
    (folder / "manifest.json").write_text(json.dumps(data))
    return folder


def works(folder: Path) -> bool:
    return np.array_equal(runtime.load(folder).run_integer({"x": rows(3)})["y"], answer(rows(3)))


def test_an_artifact_runs_from_its_image(tmp_path: Path) -> None:
    assert works(write(tmp_path))
    assert works(Path(str(tmp_path / "model")))


def test_a_shared_library_is_preferred(tmp_path: Path) -> None:
    folder = write(tmp_path, share=True)
    if "model.so" not in read_manifest(folder).files:
        pytest.skip("no linker")
    (folder / "model.img").unlink()
    assert works(folder)


def test_a_library_that_cannot_be_opened_leaves_the_image(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "model.so").write_bytes(b"for another libc")
    edit(folder, lambda m: m["files"].update({"model.so": {"size": 16, "sha256": digest(b"for another libc")}}))
    assert works(folder)


@pytest.mark.parametrize("kind", ["crc32", "sha256"])
@pytest.mark.parametrize("name", ["model.img", "model.so"])
def test_damaged_files_are_refused(name: str, kind: str, tmp_path: Path) -> None:
    folder = write(tmp_path, share=name == "model.so")
    if name not in read_manifest(folder).files:
        pytest.skip("no linker")
    content = bytearray((folder / name).read_bytes())
    content[100] ^= 1
    (folder / name).write_bytes(content)
    if kind == "sha256":  # artifacts of before had no other
        edit(folder, lambda m: m["files"][name].pop("crc32"))
    with pytest.raises(ArtifactError, match=f"{name} is damaged: expected {kind}"):
        runtime.load(folder)
    assert list(runtime.damaged_files(folder)) == [name]


def test_missing_files_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "model.img").unlink()
    with pytest.raises(ArtifactError, match=r"expected model.img in .* found no such file"):
        runtime.load(folder)
    assert runtime.damaged_files(folder) == {"model.img": "missing"}
    with pytest.raises(ArtifactError, match=r"manifest.json cannot be read"):
        runtime.load(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match="found none: programs for linux run as libraries only"):
        runtime.load(edit(write(tmp_path), lambda m: m["files"].pop("model.img")))


def test_other_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="expected an artifact of format 1, found format 2, made by qcompiler"):
        runtime.load(edit(write(tmp_path), lambda m: m.update(format=2)))


def test_an_entry_outside_of_the_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="entry model_run is at 123456789, outside its image"):
        runtime.load(edit(write(tmp_path), lambda m: m["entries"].update(model_run=123456789)))


SAMPLE = Manifest(
    INTERFACE, platform(), {"model_run": 0, "model_run_f32": 64}, 100, {"model.o": {"size": 1, "sha256": "00"}}, [1], None, "qcompiler 0"
)


@pytest.mark.parametrize("divided", [True, False])
def test_a_manifest_is_read_as_it_was_written(divided: bool) -> None:
    written = replace(SAMPLE, interface=replace(INTERFACE, parallel=True, divided=divided))
    assert Manifest.from_json(written.to_json()) == written


@settings(max_examples=200)
@given(position=st.integers(0, len(SAMPLE.to_json()) - 1), new=st.text(max_size=3), length=st.integers(0, 40))
def test_a_mutated_manifest_is_an_artifact_error_or_still_one(position: int, new: str, length: int) -> None:
    text = SAMPLE.to_json()
    with suppress(ArtifactError):
        Manifest.from_json(text[:position] + new + text[position + length :])


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "1", '{"format": 1}', "[" * 100000])
def test_what_is_no_manifest_is_an_artifact_error(text: str) -> None:
    with pytest.raises(ArtifactError):
        Manifest.from_json(text)


def test_a_missing_cpu_feature_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "cpu_flags", lambda: frozenset({"pni", "ssse3", "sse4_1", "avx2", "asimd", "asimddp"}))
    features = {"x86_64": ("sse3", "avx2", "avx512vnni"), "aarch64": ("neon", "dotprod", "i8mm")}[HOST]
    advice = {"x86_64": "x86-64-avx2", "aarch64": "arm64-dotprod"}[HOST]
    folder = write(tmp_path, target=platform(features=features))
    with pytest.raises(MachineError, match=f"found a CPU without {features[2]}; compile with --target {advice}"):
        runtime.load(folder)
    assert works(write(tmp_path, target=platform(features=features[:2])))


def test_another_architecture_is_named(tmp_path: Path) -> None:
    other = "aarch64" if HOST == "x86_64" else "x86_64"
    with pytest.raises(MachineError, match=f"expected a machine of architecture {other}, found {HOST}"):
        runtime.load(write(tmp_path, target=platform(other)))


def test_another_calling_convention_is_named() -> None:
    target = replace(platform(), os="windows")
    assert "calling convention of windows" in (cpu.mismatch(target.arch, target.os, ()) or "")


def test_flags_of_this_cpu_are_read() -> None:
    flags = cpu.cpu_flags()
    if flags is None:
        pytest.skip("this system does not list CPU features")
    assert cpu.missing_features(["sse3"] if HOST == "x86_64" else ["neon"], HOST) == []
    assert cpu.missing_features(["no-such-feature"], HOST) == ["no-such-feature"]


def test_memory_and_file_map_the_same(tmp_path: Path) -> None:
    data = bytes(range(256)) * 32
    (tmp_path / "f").write_bytes(data)
    assert bytes(map_file(tmp_path / "f")) == bytes(map_bytes(data)) == data
    assert not map_file(tmp_path / "f").flags.writeable
    with pytest.raises(ArtifactError, match="cannot read the image"):
        map_file(tmp_path / "g")
    (tmp_path / "empty").touch()
    with pytest.raises(ArtifactError, match="cannot read the image"):
        map_file(tmp_path / "empty")


def test_code_lives_as_long_as_its_executor() -> None:
    import gc

    from qcompiler.backends.image import flatten

    image = flatten(toy(HOST))
    executor = NativeExecutor.of_image(image.data, image.entries)
    del image
    gc.collect()
    y = np.zeros((1, 1), np.int8)
    executor.call("model_run", [rows(1)], [y], allocate(INTERFACE.arena_size))
    assert np.array_equal(y, answer(rows(1)))


def test_loading_imports_numpy_and_the_standard_library_only(tmp_path: Path) -> None:
    folder = write(tmp_path, share=True)
    code = f"""
import sys, numpy
before = {{m.partition(".")[0] for m in sys.modules}}  # with what the interpreter's site brings along
from qcompiler import runtime
runtime.load({str(folder)!r}).run({{"x": numpy.zeros((1, 8))}})
import qcompiler.runtime.bench
print(sorted({{m.partition(".")[0] for m in sys.modules}} - set(sys.stdlib_module_names) - before - {{"qcompiler"}}))
print(sorted(m for m in sys.modules if m.startswith("qcompiler.") and not m.startswith(("qcompiler.runtime", "qcompiler.errors"))))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    foreign, own = done.stdout.splitlines()
    assert [m for m in eval(foreign) if not m.startswith(("_", "cython"))] == []
    assert eval(own) == []
