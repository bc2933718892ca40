"""Machine code -> instructions, complete: every byte is accounted for, or the instruction is called unknown.

capstone 5 lacks the VEX forms of the dot products (AVX-VNNI, AVX-VNNI-INT8); they are decoded here from their encoding: Intel SDM
volume 2, section 2.3 (VEX prefix, ModR/M, SIB) and the VPDP* pages.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import capstone

UNKNOWN = "(unknown)"
_MODES = {"x86_64": (capstone.CS_ARCH_X86, capstone.CS_MODE_64), "aarch64": (capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)}


@dataclass(frozen=True)
class Instruction:
    """One instruction at an offset of the image."""

    address: int
    size: int
    mnemonic: str
    operands: str

    @property
    def end(self) -> int:
        """Where the next one begins."""
        return self.address + self.size

    def __str__(self) -> str:
        return f"{self.mnemonic} {self.operands}".strip()


def disassemble(arch: str, code: bytes | bytearray, address: int) -> Iterator[Instruction]:
    """All instructions of `code`, which lies at `address`; on x86 nothing can be said after an unknown one."""
    decoder: Any = capstone.Cs(*_MODES[arch])
    end, start = address + len(code), address
    while address < end:
        for instruction in decoder.disasm_lite(code[address - start :], address):
            yield (found := Instruction(*instruction))
            address = found.end
        if address < end:
            yield (found := _undecoded(arch, code[address - start :], address))
            address = found.end


def _undecoded(arch: str, code: bytes | bytearray, address: int) -> Instruction:
    """What capstone stopped at."""
    if arch == "aarch64":
        return Instruction(address, min(4, len(code)), UNKNOWN, code[:4].hex())
    return _vex_dot(code, address) or Instruction(address, len(code), UNKNOWN, code[:15].hex())


# (pp, opcode) in map 0F38 with W0; pp is 0: none, 1: 66, 2: F3, 3: F2.
_VEX_DOT = {
    (pp, 0x50 + i): name
    for pp, names in {
        0: ("vpdpbuud", "vpdpbuuds"),
        1: ("vpdpbusd", "vpdpbusds", "vpdpwssd", "vpdpwssds"),
        2: ("vpdpbsud", "vpdpbsuds"),
        3: ("vpdpbssd", "vpdpbssds"),
    }.items()
    for i, name in enumerate(names)
}


def _vex_dot(code: bytes | bytearray, address: int) -> Instruction | None:
    """A dot product in three-byte VEX encoding: C4, RXB and map, W vvvv L pp, opcode, ModR/M ..."""
    if len(code) < 5 or code[0] != 0xC4 or code[1] & 0x1F != 2 or code[2] & 0x80:
        return None
    name = _VEX_DOT.get((code[2] & 3, code[3]))
    size = 4 + _operand_bytes(code[4:6])
    return None if name is None or size > len(code) else Instruction(address, size, name, code[:size].hex())


def _operand_bytes(code: bytes | bytearray) -> int:
    """Length of ModR/M, SIB and displacement."""
    mode, base = code[0] >> 6, code[0] & 7
    if mode == 3:
        return 1
    indexed = base == 4 and len(code) > 1
    base = code[1] & 7 if indexed else base
    displacement = {0: 4 if base == 5 else 0, 1: 1, 2: 4}[mode]
    return 1 + indexed + displacement
