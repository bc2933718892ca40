"""How instructions move the stack pointer, read from capstone's text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .disassemble import Instruction


@dataclass(frozen=True)
class Push:
    """An instruction that lowers the stack pointer by at most `size` bytes (None: unknown; 0: it raises or restores it)."""

    instruction: Instruction
    size: int | None


def pushes(arch: str, instructions: Iterable[Instruction]) -> Iterator[Push]:
    """All instructions that change the stack pointer, calls and returns aside."""
    return (_x86_pushes if arch == "x86_64" else _arm_pushes)(instructions)


def _number(text: str) -> int | None:
    try:
        return int(text.strip().lstrip("#"), 0)
    except ValueError:
        return None


_X86_STACK = re.compile(r"\b[re]?spl?\b")
_X86_READS = ("cmp", "test", "push", "call", "ret")


def _x86_pushes(instructions: Iterable[Instruction]) -> Iterator[Push]:
    for i in instructions:
        target, _, source = i.operands.partition(",")
        if i.mnemonic == "push":
            yield Push(i, 8)
        elif i.mnemonic in ("pop", "leave"):
            yield Push(i, None if target == "rsp" else 0)
        elif (_X86_STACK.fullmatch(target) and i.mnemonic not in _X86_READS) or (i.mnemonic == "xchg" and _X86_STACK.search(i.operands)):
            yield Push(i, _x86_growth(i.mnemonic, source) if target == "rsp" else None)


def _x86_growth(mnemonic: str, source: str) -> int | None:
    """Of an instruction that writes rsp."""
    value = _number(source)
    if mnemonic in ("sub", "add") and value is not None:
        value = value - (1 << 64) if value >= 1 << 63 else value
        return max(0, value if mnemonic == "sub" else -value)
    if mnemonic == "and" and value is not None:  # realigned: -64 as a signed or an unsigned number
        return (-value) % (1 << 64) - 1
    restores = (mnemonic == "mov" and source.strip() == "rbp") or (mnemonic == "lea" and source.strip().startswith("[rbp"))
    return 0 if restores else None


_ARM_WRITEBACK = re.compile(r"\[sp(?:, (?P<before>#\S+))?\](?:!|, (?P<after>#\S+))$")
_ARM_SUB = re.compile(r"(?P<to>\w+), (?P<of>\w+), (?P<value>#\w+)(?:, lsl (?P<shift>#\w+))?$")
_ARM_WRITES = ("add", "sub", "mov", "and", "orr", "eor", "bic", "adds", "subs", "ands")


def _arm_pushes(instructions: Iterable[Instruction]) -> Iterator[Push]:
    below: dict[str, int] = {}  # registers that hold sp minus so much, to follow its realignment: sub x9, sp, #n; and sp, x9, #-64
    for i in instructions:
        if (match := _ARM_WRITEBACK.search(i.operands)) is not None:
            offset = _number(match["before"] or match["after"] or "")
            yield Push(i, None if offset is None else max(0, -offset))
        elif "[sp" in i.operands and (i.operands.endswith("!") or "]," in i.operands):
            yield Push(i, None)
        elif i.operands.startswith(("sp,", "wsp,")) and i.mnemonic in _ARM_WRITES:
            yield Push(i, _arm_growth(i, below))
        elif i.mnemonic == "sub":
            _follow(i, below)


def _amount(match: re.Match[str]) -> int | None:
    value, shift = _number(match["value"]), _number(match["shift"] or "0")
    return None if value is None or shift is None else value << shift


def _follow(i: Instruction, below: dict[str, int]) -> None:
    match = _ARM_SUB.match(i.operands)
    amount = None if match is None else _amount(match)
    if match is not None and amount is not None and (match["of"] == "sp" or match["of"] in below):
        below[match["to"]] = amount + below.get(match["of"], 0)


def _arm_growth(i: Instruction, below: dict[str, int]) -> int | None:
    """Of an instruction that writes sp."""
    if i.mnemonic == "mov":
        return 0 if i.operands == "sp, x29" else None
    match = _ARM_SUB.match(i.operands)
    amount = None if match is None else _amount(match)
    if match is None or amount is None:
        return None
    if i.mnemonic == "and" and match["of"] in below:
        return below[match["of"]] + (-amount) % (1 << 64) - 1
    restores = i.mnemonic in ("add", "sub") and match["of"] == "x29"
    if match["of"] != "sp" and not restores:
        return None
    return amount if i.mnemonic == "sub" and not restores else 0
