"""ELF object -> flat image: position-independent bytes that need no linker and no loader.

Our objects call nothing outside and hold no writable data, so once their few PC-relative relocations are applied the bytes run
wherever they are mapped. The image is raw; what is needed to use it (entry offsets, digest) is in manifest.json:

    offset 0            code: every executable section of the object
    next multiple of PAGE   constants: every read-only section (packed weights, tables), each at its own alignment
    end                 SLACK zero bytes (kernels may read past a constant), then zeros up to a multiple of PAGE

Code and constants start on pages, so a loader maps the file once, at offset 0, readable and executable: weights are never copied, and
ADRP (which addresses 4 KiB pages) keeps its meaning because every mapping is page-aligned.

Relocations: System V psABI for x86-64, table 4.9, and ELF for the Arm 64-bit Architecture (aaelf64), section 5.7. S is the symbol's
place, A the addend, P the place being written. Whatever is absolute, unresolved or unknown is refused, with the symbol's name.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import Relocation, RelocationSection
from elftools.elf.sections import Section, Symbol, SymbolTableSection

from qcompiler.errors import ProofError

PAGE = 4096
SLACK = 64
WRITE, ALLOC, EXECUTE = 1, 2, 4  # sh_flags
Patch = Callable[[bytearray, int, int, int], str | None]
ARCHITECTURES = {"EM_X86_64": "x86_64", "EM_AARCH64": "aarch64"}
UNUSED = (".eh_frame", ".note", ".llvm", ".comment", ".ARM.attributes")


@dataclass(frozen=True)
class Function:
    """A function's name and its place in the image."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Problem:
    """Why the object is not position-independent: at `offset` of the image (None: nowhere in particular)."""

    offset: int | None
    symbol: str
    why: str

    def __str__(self) -> str:
        return f"'{self.symbol}' {self.why}"


@dataclass(frozen=True)
class Image:
    """A flat image: its bytes, the size of the code at its start and the functions in it."""

    arch: str
    data: bytes | bytearray
    code_size: int
    functions: tuple[Function, ...]
    entries: dict[str, int]
    problems: tuple[Problem, ...] = ()


def flatten(obj: bytes) -> Image:
    """Lay out and relocate an ELF object; ProofError where it is not self-contained."""
    image = lay_out(obj)
    if image.problems:
        raise ProofError("expected a self-contained object, found: " + "; ".join(map(str, image.problems[:5])))
    return image


def lay_out(obj: bytes) -> Image:
    """As `flatten`, but the problems are returned, not raised (the certificate reports them)."""
    if obj[:4] != b"\x7fELF":
        raise ProofError(f"expected an ELF object, found bytes {obj[:4].hex() or 'none'}; a flat image is made from ELF objects only")
    elf = _opened(obj)
    arch = ARCHITECTURES.get(elf["e_machine"])
    if arch is None or elf["e_type"] != "ET_REL":
        raise ProofError(f"expected a relocatable object for {' or '.join(ARCHITECTURES.values())}, found {elf['e_type']} for {elf['e_machine']}")
    places, code_size, size = _place_sections(elf)
    data = bytearray(size)
    for index, offset in places.items():
        section = elf.get_section(index)
        if section["sh_type"] != "SHT_NOBITS":
            data[offset : offset + section["sh_size"]] = memoryview(obj)[section["sh_offset"] :][: section["sh_size"]]
    problems = [*_writable_data(elf), *_relocate(elf, arch, places, data)]
    functions = tuple(sorted(_functions(elf, places), key=lambda f: f.offset))
    return Image(arch, data, code_size, functions, _entries(elf, places), tuple(problems))


def _opened(obj: bytes) -> ELFFile:
    try:
        return ELFFile(io.BytesIO(obj))
    except ELFError as problem:
        raise ProofError(f"expected an ELF object, found a damaged one: {problem}") from problem


def _place_sections(elf: ELFFile) -> tuple[dict[int, int], int, int]:
    """Image offset of each section, end of the code, size of the image."""
    wanted = [(i, s) for i, s in enumerate(elf.iter_sections()) if s["sh_flags"] & ALLOC and s["sh_size"] and not s.name.startswith(UNUSED)]
    places: dict[int, int] = {}
    end = code_end = 0
    for executable in (True, False):
        end = align(end, PAGE)
        for index, section in wanted:
            if bool(section["sh_flags"] & EXECUTE) == executable:
                places[index] = align(end, max(1, section["sh_addralign"]))
                end = places[index] + section["sh_size"]
        code_end = end if executable else code_end
    return places, code_end, align(end + SLACK, PAGE)


def align(offset: int, alignment: int) -> int:
    """The next multiple of `alignment`."""
    return -(-offset // alignment) * alignment


def _writable_data(elf: ELFFile) -> Iterator[Problem]:
    for section in elf.iter_sections():
        if section["sh_flags"] & ALLOC and section["sh_flags"] & WRITE and section["sh_size"]:
            yield Problem(None, section.name, f"is writable static data ({section['sh_size']} bytes): a program must keep no state")


def _symbols(elf: ELFFile) -> Iterator[Symbol]:
    for table in elf.iter_sections():
        if isinstance(table, SymbolTableSection):
            yield from table.iter_symbols()


def _functions(elf: ELFFile, places: dict[int, int]) -> Iterator[Function]:
    for symbol in _symbols(elf):
        if symbol["st_info"]["type"] == "STT_FUNC" and symbol["st_shndx"] in places:
            yield Function(symbol.name, places[symbol["st_shndx"]] + symbol["st_value"], symbol["st_size"])


def _entries(elf: ELFFile, places: dict[int, int]) -> dict[str, int]:
    """Offsets of the exported functions."""
    exported = (s for s in _symbols(elf) if s["st_info"]["bind"] == "STB_GLOBAL" and s["st_info"]["type"] == "STT_FUNC")
    return {s.name: places[s["st_shndx"]] + s["st_value"] for s in exported if s["st_shndx"] in places}


def _relocate(elf: ELFFile, arch: str, places: dict[int, int], data: bytearray) -> Iterator[Problem]:
    """Apply every relocation of the placed sections; yields those that cannot be."""
    patch = {"x86_64": _patch_x86, "aarch64": _patch_arm}[arch]
    for table in elf.iter_sections():
        if not isinstance(table, RelocationSection) or table["sh_info"] not in places:
            continue
        symbols, base = cast(SymbolTableSection, elf.get_section(table["sh_link"])), places[table["sh_info"]]
        for relocation in table.iter_relocations():
            symbol = symbols.get_symbol(relocation["r_info_sym"])
            place = base + relocation["r_offset"]
            if (why := _apply(patch, data, place, symbol, relocation, places)) is not None:
                yield Problem(place, _name(elf, symbol), why)


def _apply(patch: Patch, data: bytearray, place: int, symbol: Symbol, relocation: Relocation, places: dict[int, int]) -> str | None:
    kind = relocation["r_info_type"]
    if kind == 0:  # R_*_NONE
        return None
    if symbol["st_shndx"] not in places:
        return "is not defined in the object (unresolved symbol)" if symbol["st_shndx"] == "SHN_UNDEF" else "is not in code or constants"
    target = places[symbol["st_shndx"]] + symbol["st_value"] + relocation["r_addend"]
    return patch(data, place, target, kind)


def _name(elf: ELFFile, symbol: Symbol) -> str:
    if symbol.name or not isinstance(symbol["st_shndx"], int):
        return symbol.name or "(no name)"
    section: Section = elf.get_section(symbol["st_shndx"])
    return str(section.name)


def _put(data: bytearray, place: int, value: int, size: int) -> str | None:
    """Store a signed value; says so where it does not fit."""
    if not -(1 << (8 * size - 1)) <= value < 1 << (8 * size - 1):
        return f"is {value} bytes away, beyond the {8 * size} bits of its relocation"
    data[place : place + size] = value.to_bytes(size, "little", signed=True)
    return None


# R_X86_64_*: 2 PC32, 4 PLT32, 24 PC64: S + A - P. 9 GOTPCREL, 41 GOTPCRELX, 42 REX_GOTPCRELX: a load from the GOT, relaxed to LEA.
_X86_PC = {2: 4, 4: 4, 24: 8}
_X86_GOT = (9, 41, 42)
_MOV_LOAD, _LEA = 0x8B, 0x8D


def _patch_x86(data: bytearray, place: int, target: int, kind: int) -> str | None:
    if kind in _X86_PC:
        return _put(data, place, target - place, _X86_PC[kind])
    if kind in _X86_GOT and data[place - 2] == _MOV_LOAD:
        data[place - 2] = _LEA
        return _put(data, place, target - place, 4)
    return f"is used by relocation R_X86_64 {kind}, which is absolute or unknown"


# R_AARCH64_* of one instruction word: (bits of the immediate, its lowest bit in the word, right shift of the value).
_ARM_BRANCH = {279: (14, 5, 2), 280: (19, 5, 2), 282: (26, 0, 2), 283: (26, 0, 2), 273: (19, 5, 2)}  # TSTBR14 CONDBR19 JUMP26 CALL26 LD_PREL_LO19
_ARM_LO12 = {277: 0, 278: 0, 284: 1, 285: 2, 286: 3, 299: 4}  # ADD_ABS_LO12_NC, LDST8/16/32/64/128_ABS_LO12_NC
_ARM_DATA = {260: 8, 261: 4, 262: 2}  # PREL64 PREL32 PREL16
_ARM_ADR, _ARM_PAGE = 274, (275, 276, 311)  # ADR_PREL_LO21; ADR_PREL_PG_HI21(_NC) and ADR_GOT_PAGE, relaxed to it
_ARM_GOT_LO12 = 312  # LD64_GOT_LO12_NC: LDR X, [X, got] relaxed to ADD X, X, lo12
_LDR_X, _ADD_X = 0xF9400000, 0x91000000


def _patch_arm(data: bytearray, place: int, target: int, kind: int) -> str | None:
    if kind in _ARM_DATA:
        return _put(data, place, target - place, _ARM_DATA[kind])
    if kind in _ARM_BRANCH:
        return _put_field(data, place, target - place, *_ARM_BRANCH[kind])
    if kind in _ARM_LO12:
        return _put_lo12(data, place, target, _ARM_LO12[kind])
    if kind == _ARM_ADR or kind in _ARM_PAGE:
        return _put_adr(data, place, target - place if kind == _ARM_ADR else (target >> 12) - (place >> 12))
    if kind == _ARM_GOT_LO12 and _word(data, place) >> 22 == _LDR_X >> 22:
        _set_word(data, place, _ADD_X | (_word(data, place) & 0x3FF))
        return _put_lo12(data, place, target, 0)
    return f"is used by relocation R_AARCH64 {kind}, which is absolute or unknown"


def _word(data: bytearray, place: int) -> int:
    return int.from_bytes(data[place : place + 4], "little")


def _set_word(data: bytearray, place: int, word: int) -> None:
    data[place : place + 4] = word.to_bytes(4, "little")


def _put_field(data: bytearray, place: int, distance: int, bits: int, low: int, shift: int) -> str | None:
    """A signed distance in units of 2^shift."""
    value = distance >> shift
    if distance & ((1 << shift) - 1) or not -(1 << (bits - 1)) <= value < 1 << (bits - 1):
        return f"is {distance} bytes away, beyond the {bits} bits of its relocation"
    mask = ((1 << bits) - 1) << low
    _set_word(data, place, (_word(data, place) & ~mask) | ((value << low) & mask))
    return None


def _put_lo12(data: bytearray, place: int, target: int, shift: int) -> str | None:
    """The offset in its 4 KiB page, in units of the access: bits 10 to 21 of ADD, LDR, STR."""
    offset = target & 0xFFF
    if offset & ((1 << shift) - 1):
        return f"is at page offset {offset}, which is no multiple of the access size {1 << shift}"
    _set_word(data, place, (_word(data, place) & ~(0xFFF << 10)) | (offset >> shift << 10))
    return None


def _put_adr(data: bytearray, place: int, value: int) -> str | None:
    """21 signed bits of ADR or ADRP: the low two at bit 29, the rest at bit 5."""
    if not -(1 << 20) <= value < 1 << 20:
        return f"is {value} away, beyond the 21 bits of ADR"
    word = _word(data, place) & ~(3 << 29 | 0x7FFFF << 5)
    _set_word(data, place, word | (value & 3) << 29 | (value >> 2 & 0x7FFFF) << 5)
    return None
