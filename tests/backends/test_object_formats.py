"""The objects of all systems, read by parsers of their headers: the functions of the header are defined, and nothing is asked of a linker."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from struct import unpack_from

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile

import qcompiler
from qcompiler.api import QuantizedModel, build, quantize_model

MODELS = Path(__file__).parents[2] / "models"
Symbols = tuple[set[str], set[str]]
"""Defined globally, and undefined."""
MACHINES = {"x86_64": ("EM_X86_64", 0x01000007, 0x8664), "aarch64": ("EM_AARCH64", 0x0100000C, 0xAA64)}
EXTERNAL, ABSENT, STABS = 0x01, 0x00, 0xE0


def of_elf(obj: bytes, arch: str) -> Symbols:
    elf = ELFFile(BytesIO(obj))
    assert (elf["e_machine"], elf["e_type"]) == (MACHINES[arch][0], "ET_REL")
    symbols = [s for s in elf.get_section_by_name(".symtab").iter_symbols() if s.name]
    public = {s.name for s in symbols if s["st_info"]["bind"] == "STB_GLOBAL" and s["st_shndx"] != "SHN_UNDEF"}
    return public, {s.name for s in symbols if s["st_shndx"] == "SHN_UNDEF"}


def of_macho(obj: bytes, arch: str) -> Symbols:
    """mach_header_64 and LC_SYMTAB of <mach-o/loader.h>, nlist_64 of <mach-o/nlist.h>."""
    magic, machine, _, kind, commands = unpack_from("<IIIII", obj)
    assert (magic, machine, kind) == (0xFEEDFACF, MACHINES[arch][1], 1)
    at, defined, undefined = 32, set[str](), set[str]()
    for _ in range(commands):
        command, size = unpack_from("<II", obj, at)
        if command == 2:
            first, count, strings = unpack_from("<III", obj, at + 8)
            for n in range(count):
                name, type, _, _, _ = unpack_from("<IBBHQ", obj, first + 16 * n)
                if type & STABS or not type & EXTERNAL:
                    continue
                text = obj[strings + name : obj.index(b"\0", strings + name)].decode()
                (undefined if type & 0x0E == ABSENT else defined).add(text)
        at += size
    assert all(s.startswith("_") for s in defined)
    return {s[1:] for s in defined}, undefined


def of_coff(obj: bytes, arch: str) -> Symbols:
    """Microsoft's PE format: file header of 20 bytes, symbols of 18; a name of zeros is an offset into the strings behind them."""
    machine, _, _, first, count = unpack_from("<HHIII", obj)
    assert machine == MACHINES[arch][2]
    strings, n, defined, undefined = first + 18 * count, 0, set[str](), set[str]()
    while n < count:
        raw, _, section, _, kind, more = unpack_from("<8sIhHBB", obj, first + 18 * n)
        zeros, offset = unpack_from("<II", raw)
        text = raw.rstrip(b"\0") if zeros else obj[strings + offset : obj.index(b"\0", strings + offset)]
        if kind == 2:
            (defined if section else undefined).add(text.decode())
        n += 1 + more
    return defined, undefined


@pytest.fixture(scope="module")
def model() -> QuantizedModel:
    calib = np.load(MODELS / "digits_calib.npz")["input"][:16]
    return quantize_model(MODELS / "digits_dwconv.onnx", [{"input": calib}])


@pytest.mark.parametrize("target", ["x86-64-avx2", "x86-64-avx512vnni", "arm64", "arm64-dotprod"])
@pytest.mark.parametrize(("os", "parse"), [("linux", of_elf), ("android", of_elf), ("macos", of_macho), ("windows", of_coff)])
def test_symbols_of_objects(model: QuantizedModel, target: str, os: str, parse: object) -> None:
    program: qcompiler.Program = build(model, target, os=os, name="digits")
    defined, undefined = parse(program.code.object, program.target.arch)  # type: ignore[operator]
    assert set(program.interface.symbols) <= defined
    assert undefined <= {"_fltused"}, "Microsoft's mark of floats in the entry for real numbers, which every C runtime defines"
