"""All constants of a program in one read-only symbol, written into the object after it is compiled.

Printing megabytes of weights as LLVM text and parsing them again would take most of the compile time. So the module gets a symbol
of the right size that holds a marker and zeros, and the bytes replace these in the finished object. No pass may look into the
initializer: kernels meet constants only behind pointers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from llvmlite import ir

ALIGNMENT = 64
MARKER = sha256(b"qcompiler: the constants of a program are put here").digest()
_I8 = ir.IntType(8)


@dataclass
class Constants:
    """The bytes so far; equal contents are kept once."""

    content: bytearray = field(default_factory=bytearray)
    _places: dict[bytes, int] = field(default_factory=dict)

    def place(self, data: bytes) -> int:
        """Offset of `data`, aligned to 64."""
        key = sha256(data).digest()
        if key not in self._places:
            self._places[key] = len(self.content)
            self.content += data + bytes(-len(data) % ALIGNMENT)
        return self._places[key]

    @property
    def size(self) -> int:
        """Bytes of the symbol."""
        return max(len(self.content), len(MARKER))


def declare(module: Any, name: str) -> Any:
    """The symbol, of a size to be given by `define`."""
    g = ir.GlobalVariable(module, _I8, name)
    g.linkage, g.global_constant, g.align = "internal", True, ALIGNMENT
    return g


def define(symbol: Any, constants: Constants) -> None:
    """Give the symbol its size: the marker, then zeros."""
    head, rest = (ir.ArrayType(_I8, n) for n in (len(MARKER), constants.size - len(MARKER)))
    symbol.value_type = ir.LiteralStructType([head, rest])
    symbol.initializer = ir.Constant(symbol.value_type, [ir.Constant(head, bytearray(MARKER)), ir.Constant(rest, None)])


def patched(obj: bytes, constants: Constants) -> bytes:
    """The object with the constants in their place."""
    at = obj.find(MARKER)
    if at < 0:
        return obj
    if obj.find(MARKER, at + 1) >= 0 or obj[at + len(MARKER) : at + constants.size].strip(b"\0"):
        raise AssertionError("the place of the constants is not unique in the object")
    content = bytes(constants.content).ljust(constants.size, b"\0")
    return b"".join((obj[:at], content, obj[at + constants.size :]))
