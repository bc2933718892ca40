"""Static libraries, written here because a Python installation has no `ar`.

Members follow one another, each behind a header of 60 bytes; the first is the index of symbols. System V's index (ELF, wasm) and the first
linker member of COFF (Microsoft "PE Format", Archive File Format) are the same: big-endian count, offset of the member per symbol,
names. Microsoft's linker wants a second, little-endian and sorted. Apple's (`man 5 ar`, <mach-o/ranlib.h>) is called __.SYMDEF and holds pairs of
name and member offsets, little-endian.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import pack

from .image import align

MAGIC = b"!<arch>\n"
HEADER = 60
Index = Callable[[Sequence[str], int], bytes]


def archive(name: str, content: bytes, symbols: Sequence[str], os: str) -> bytes:
    """A library of one member, `name`, that defines `symbols` (as the object spells them)."""
    indices = {"macos": [_apple_index], "windows": [_gnu_index, _coff_index]}.get(os, [_gnu_index])
    size = len(MAGIC) + sum(len(index(symbols, 0)) for index in indices)
    head = MAGIC + b"".join(index(symbols, size) for index in indices)
    return head + (_apple_member(name, content) if os == "macos" else _member(f"{name}/", content))


def _member(name: str, content: bytes) -> bytes:
    """Header (name, date, owner, group, mode, size; zeros where builds would differ) and content, padded to 2."""
    header = f"{name:<16}{0:<12}{0:<6}{0:<6}{644:<8}{len(content):<10}`\n".encode("ascii")
    return header + content + b"\n" * (len(content) % 2)


def _apple_member(name: str, content: bytes) -> bytes:
    """The name precedes the content, padded so that the content lies at a multiple of 8 (the linker maps it)."""
    room = align(HEADER + len(name) + 1, 8) - HEADER
    return _member(f"#1/{room}", name.encode("ascii").ljust(room, b"\0") + content.ljust(align(len(content), 8), b"\0"))


def _names(symbols: Sequence[str]) -> bytes:
    return b"".join(s.encode("ascii") + b"\0" for s in symbols)


def _gnu_index(symbols: Sequence[str], member: int) -> bytes:
    content = pack(f">{1 + len(symbols)}I", len(symbols), *[member] * len(symbols)) + _names(symbols)
    return _member("/", content + b"\0" * (len(content) % 2))


def _coff_index(symbols: Sequence[str], member: int) -> bytes:
    content = pack(f"<III{len(symbols)}H", 1, member, len(symbols), *[1] * len(symbols)) + _names(sorted(symbols))
    return _member("/", content + b"\0" * (len(content) % 2))


def _apple_index(symbols: Sequence[str], member: int) -> bytes:
    """Pairs (offset of the name, offset of the member); the place of `member` is a multiple of 8 as every part is."""
    names = _names(sorted(symbols))
    names = names.ljust(align(len(names), 8), b"\0")
    starts = [names.index(s.encode("ascii") + b"\0") for s in sorted(symbols)]
    pairs = b"".join(pack("<II", start, member) for start in starts)
    return _apple_member("__.SYMDEF SORTED", pack("<I", len(pairs)) + pairs + pack("<I", len(names)) + names)
