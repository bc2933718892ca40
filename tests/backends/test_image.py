"""Flat images: where things lie, that relocations are right (by running them), and what is refused."""

from __future__ import annotations

import io

import capstone
import numpy as np
import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st
from toy_objects import ARCHITECTURES, EXTRA, INTERFACE, TOY, WEIGHTS, answer, compiled, rows, toy

from qcompiler.backends import image as images
from qcompiler.backends.emulate import emulated
from qcompiler.backends.image import PAGE, SLACK, flatten, lay_out
from qcompiler.errors import ProofError


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_code_comes_first_and_constants_begin_on_a_page(arch: str) -> None:
    image = flatten(toy(arch))
    assert len(image.data) % PAGE == 0
    assert all(f.offset + f.size <= image.code_size for f in image.functions)
    weights = image.data.index(WEIGHTS.tobytes(), PAGE)
    assert weights % 64 == 0
    assert PAGE <= weights < len(image.data) - SLACK


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_entries_are_the_exported_functions(arch: str) -> None:
    image = flatten(toy(arch))
    assert set(image.entries) == {"model_run", "model_run_f32"}
    assert {f.name for f in image.functions} == {"inner", "model_run", "model_run_f32"}
    assert image.arch == arch


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_constant_reached_through_the_got_is_relaxed(arch: str) -> None:
    """An exported constant is preemptible in position-independent code, so LLVM loads its address from the GOT."""
    ir = TOY.replace("@weights = private unnamed_addr constant", "@weights = constant")
    kinds = {
        r["r_info_type"]
        for s in ELFFile(io.BytesIO(compiled(ir, arch))).iter_sections()
        if hasattr(s, "iter_relocations")
        for r in s.iter_relocations()
    }
    assert kinds & {9, 41, 42, 311}
    x = rows(3)
    image = flatten(compiled(ir, arch))
    assert np.array_equal(emulated(INTERFACE, image).run_integer({"x": x})["y"], answer(x))


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(
    "extra, words",
    [
        ("foreign call", "'puts' is not defined in the object"),
        ("foreign data", "'environ' is not defined in the object"),
        ("state", "is writable static data"),
        ("absolute", "'model_run' is used by relocation"),
    ],
)
def test_what_is_not_self_contained_is_refused_by_name(arch: str, extra: str, words: str) -> None:
    assert extra in EXTRA
    with pytest.raises(ProofError, match=words):
        flatten(toy(arch, extra=extra))
    assert any(words in str(problem) for problem in lay_out(toy(arch, extra=extra)).problems)


@pytest.mark.parametrize(
    "obj",
    [b"", b"MZ", b"\x7fELF", toy("x86_64")[:40], toy("x86_64", "windows"), toy("aarch64", "macos")],
    ids=["empty", "short", "magic", "cut", "coff", "mach-o"],
)
def test_other_formats_are_refused(obj: bytes) -> None:
    with pytest.raises(ProofError, match="expected an ELF object"):
        flatten(obj)


def test_other_architectures_are_refused() -> None:
    with pytest.raises(ProofError, match="EM_RISCV"):
        flatten(compiled("define i32 @f() { ret i32 0 }", "riscv64"))


def decoded(word: int, place: int) -> str:
    decoder = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)
    (instruction,) = decoder.disasm(word.to_bytes(4, "little"), place)
    return instruction.op_str


def patched(word: int, place: int, target: int, kind: int) -> tuple[int, str | None]:
    data = bytearray(place) + bytearray(word.to_bytes(4, "little"))
    why = images._patch_arm(data, place, target, kind)
    return int.from_bytes(data[place:], "little"), why


@given(page=st.integers(0, 3), target=st.integers(0, (1 << 32) - 1))
def test_adrp_reaches_the_page_of_its_target(page: int, target: int) -> None:
    word, why = patched(0x90000001, page * PAGE, target, 275)
    assert why is None
    assert decoded(word, page * PAGE) == f"x1, #{target & ~0xFFF:#x}" or target < PAGE


@given(target=st.integers(-(1 << 27), (1 << 27) - 1).map(lambda n: n & ~3), place=st.sampled_from([0, 4, 64]))
def test_calls_reach_their_target_or_say_why_not(target: int, place: int) -> None:
    word, why = patched(0x94000000, place, target, 283)
    reachable = -(1 << 27) <= target - place < 1 << 27
    assert (why is None) == reachable
    if reachable and target > 0:
        assert int(decoded(word, place).lstrip("#"), 0) == target


@given(target=st.integers(0, 1 << 20), shift=st.sampled_from([(278, 0), (284, 1), (285, 2), (286, 3), (299, 4)]))
def test_load_offsets_must_be_aligned(target: int, shift: tuple[int, int]) -> None:
    kind, bits = shift
    word, why = patched(0x39400020 | bits << 30 if bits < 4 else 0x3DC00020, 0, target, kind)
    assert (why is None) == (target % (1 << bits) == 0)
    if why is None and target & 0xFFF:
        assert decoded(word, 0).endswith(f"#{target & 0xFFF:#x}]") or (target & 0xFFF) < 10


@given(target=st.integers(-(1 << 33), 1 << 33), place=st.integers(0, 100))
def test_x86_distances_must_fit(target: int, place: int) -> None:
    data = bytearray(place + 4)
    why = images._patch_x86(data, place, target, 2)
    fits = -(1 << 31) <= target - place < 1 << 31
    assert (why is None) == fits
    assert not fits or int.from_bytes(data[place:], "little", signed=True) == target - place


@pytest.mark.parametrize("patch, kind", [(images._patch_x86, 1), (images._patch_x86, 10), (images._patch_arm, 257), (images._patch_arm, 999)])
def test_absolute_and_unknown_relocations_are_refused(patch: images.Patch, kind: int) -> None:
    why = patch(bytearray(16), 4, 8, kind)
    assert why is not None
    assert "absolute or unknown" in why
