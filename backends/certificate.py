"""The integer-only certificate: a proof, by disassembly, of what the machine code of a program can do.

Every function reachable from the entry is decoded from its first byte to its last. Of each it is proven that
 1. all bytes decode, and every instruction is on the list of integer arithmetic, movement of bits and control (`instruction_sets`);
 2. every jump leads to the beginning of an instruction of the same function, every call and tail call to the beginning of a function of
    the object, and the last instruction does not fall through: so what was decoded is all that can execute;
 3. there is no indirect jump or call, no relocation that is unresolved or absolute, and no writable static data;
 4. functions do not recurse and the stack does not grow in a loop, so the stack has a bound, which is reported.

An entry for several threads is given a function that it calls (`callback`). In its body, and nowhere else, indirect calls are accepted, if they go
through that argument; and every function whose address the code forms counts as called: what it hands out is proven as what it calls.
A `Finding` is where one of these does not hold; without findings the certificate is ok.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain
from typing import Any

from .disassemble import UNKNOWN, Instruction, disassemble
from .image import Function, Image, lay_out
from .instruction_sets import is_integer
from .stack import Push, pushes


@dataclass(frozen=True)
class Finding:
    """Something in the way of the proof: function, offset in the image, instruction, reason."""

    function: str
    address: int
    instruction: str
    why: str

    def __str__(self) -> str:
        return f"{self.function}+{self.address:#x}: '{self.instruction}' {self.why}"


@dataclass(frozen=True)
class Certificate:
    """What was proven of the code reachable from `entry`, or why not."""

    entry: str
    arch: str
    functions: tuple[str, ...]
    instructions: int
    code_bytes: int
    stack_bytes: int
    histogram: dict[str, int]
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether the proof holds."""
        return not self.findings

    def as_dict(self) -> dict[str, Any]:
        """For the manifest and for --json."""
        return {"ok": self.ok, **asdict(self)}


def certify(obj: bytes, entry: str, arch: str | None = None, callback: bool = False, others: Sequence[str] = ()) -> Certificate:
    """Certify the ELF object `obj` from `entry` on, and from `others`; `arch`, if given, is what it is expected to be for.

    `callback`: entries may call the function that is their fourth argument."""
    image, entries = lay_out(obj), (entry, *others)
    entry = ", ".join(entries)
    if not set(entries) <= set(image.entries) or arch not in (None, image.arch):
        why = f"is not an exported function of this {image.arch} object (functions: {', '.join(image.entries) or 'none'})"
        return Certificate(entry, image.arch, (), 0, 0, 0, {}, (Finding(entry, 0, "", why),))
    starts = [image.entries[e] for e in entries]
    bodies = _reachable(image, starts, callback)
    instructions = [i for b in bodies.values() for i in b.instructions]
    findings = [*_data_findings(image), *(f for b in bodies.values() for f in b.findings)]
    stacks, cycles = zip(*(_stack_bound(bodies, start) for start in starts))
    histogram = dict(Counter(i.mnemonic for i in instructions).most_common())
    names = tuple(b.function.name for b in bodies.values())
    size = sum(b.function.size for b in bodies.values())
    return Certificate(entry, image.arch, names, len(instructions), size, max(stacks), histogram, (*findings, *chain.from_iterable(cycles)))


def _data_findings(image: Image) -> Iterator[Finding]:
    """Problems of the constants and of the object as a whole; those of code are found with their functions."""
    for problem in image.problems:
        if problem.offset is None or problem.offset >= image.code_size:
            yield Finding("(data)", problem.offset or 0, "", str(problem))


def _reachable(image: Image, entries: Sequence[int], callback: bool) -> dict[int, Body]:
    """Functions by offset, in the order of discovery."""
    functions = {f.offset: f for f in image.functions}
    bodies: dict[int, Body] = {}
    waiting = [*reversed(entries)]
    while waiting:
        offset = waiting.pop()
        if offset not in bodies:
            bodies[offset] = Body(image, functions[offset], callback and offset in entries)
            waiting += [target for target in bodies[offset].callees if target in functions]
    return bodies


@dataclass(frozen=True)
class Branch:
    """A control transfer: its target (None: computed, or a relocation that failed), and whether it returns."""

    instruction: Instruction
    target: int | None
    is_call: bool


@dataclass(frozen=True)
class Body:
    """A decoded function."""

    image: Image
    function: Function
    callback: bool = False
    """Whether it may call its fourth argument."""

    @cached_property
    def instructions(self) -> tuple[Instruction, ...]:
        """From the first byte to the last."""
        f = self.function
        return tuple(disassemble(self.image.arch, self.image.data[f.offset : f.offset + f.size], f.offset))

    @cached_property
    def branches(self) -> tuple[Branch, ...]:
        """All jumps and calls."""
        return tuple(b for i in self.instructions if (b := _branch(self.image.arch, i)) is not None)

    @cached_property
    def callees(self) -> tuple[int, ...]:
        """Where control goes outside of this function."""
        called = (b.target for b in self.branches if b.target is not None and (b.is_call or not self._inside(b.target)))
        return (*called, *self.taken)

    @cached_property
    def taken(self) -> tuple[int, ...]:
        """Functions whose addresses are formed here."""
        functions = {f.offset for f in self.image.functions}
        return tuple(dict.fromkeys(a for a in formed_addresses(self.image.arch, self.instructions) if a in functions))

    @cached_property
    def pushes(self) -> tuple[Push, ...]:
        """How the stack grows."""
        return tuple(pushes(self.image.arch, self.instructions))

    @property
    def frame(self) -> int:
        """Bytes of stack of one call, the return address included."""
        return 8 + sum(p.size or 0 for p in self.pushes)

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """All that is in the way of the proof."""
        problems = [*self._illegal(), *self._flow(), *self._stack(), *self._relocations()]
        return tuple(Finding(self.function.name, i.address, str(i), why) for i, why in problems)

    def _inside(self, address: int) -> bool:
        return self.function.offset <= address < self.function.offset + self.function.size

    def _illegal(self) -> Iterator[tuple[Instruction, str]]:
        control = {b.instruction.address for b in self.branches}
        for i in self.instructions:
            if i.mnemonic == UNKNOWN:
                yield i, "cannot be decoded"
            elif i.address not in control and not _is_return(i) and not is_integer(self.image.arch, i.mnemonic):
                yield i, "is not on the list of integer and data-movement instructions"
            elif "fs:" in i.operands or "gs:" in i.operands:
                yield i, "uses memory of the thread, which is state"

    def _flow(self) -> Iterator[tuple[Instruction, str]]:
        starts = {i.address for i in self.instructions}
        functions = {f.offset for f in self.image.functions}
        patched = {p.offset for p in self.image.problems if p.offset is not None}
        for branch in self.branches:
            i, target = branch.instruction, branch.target
            if target is None and self.callback and branch.is_call:
                yield from self._callback(i)
            elif target is None:
                yield i, "goes to a computed address"
            elif not patched.isdisjoint(range(i.address, i.end)):
                continue  # told by _relocations
            elif target not in functions and (branch.is_call or target not in starts):
                yield i, "leads to no function and no instruction of this one"
        yield from self._ending()

    def _callback(self, call: Instruction) -> Iterator[tuple[Instruction, str]]:
        """The register that is called is written once only, with the fourth argument."""
        register, argument = call.operands.strip(), FOURTH_ARGUMENT[self.image.arch]
        writes = [i for i in self.instructions if i.operands.split(",")[0].strip() == register and i.mnemonic not in _READS]
        if [(i.mnemonic, i.operands) for i in writes] != [("mov", f"{register}, {argument}")]:
            yield call, "goes to an address that is not the callback's"

    def _ending(self) -> Iterator[tuple[Instruction, str]]:
        last = self.instructions[-1] if self.instructions else Instruction(self.function.offset, 0, "(nothing)", "")
        if not (_is_return(last) or last.mnemonic in ("jmp", "b")):
            yield last, "ends the function, which falls through"

    def _stack(self) -> Iterator[tuple[Instruction, str]]:
        spans = ((b.target, b.instruction.address) for b in self.branches if b.target is not None)
        loops = [(first, last) for first, last in spans if self.function.offset <= first <= last]
        for push in self.pushes:
            if push.size is None:
                yield push.instruction, "moves the stack by an unknown amount"
            elif push.size > 0 and any(first <= push.instruction.address <= last for first, last in loops):
                yield push.instruction, "may grow the stack in a loop"

    def _relocations(self) -> Iterator[tuple[Instruction, str]]:
        places = {p.offset: p for p in self.image.problems if p.offset is not None and self._inside(p.offset)}
        if places:
            for i in self.instructions:
                yield from ((i, f"uses {places[a]}") for a in range(i.address, i.end) if a in places)


FOURTH_ARGUMENT = {"x86_64": "rcx", "aarch64": "x3"}
_READS = ("call", "blr", "push", "pop", "cmp", "test", "str", "stp", "ldp", "ldr")
"""Of instructions whose first operand is a register that is called: they read it, save it, or restore the caller's."""
_RIP = re.compile(r"\[rip (?P<sign>[+-]) (?P<offset>\w+)\]$")


def formed_addresses(arch: str, instructions: Iterable[Instruction]) -> Iterator[int]:
    """Addresses in the image that LEA, ADR or ADRP with ADD compute."""
    pages: dict[str, int] = {}
    for i in instructions:
        operands = [o.strip() for o in i.operands.split(",")]
        if i.mnemonic == "lea" and (match := _RIP.search(i.operands)):
            yield i.end + int(match["offset"], 0) * (-1 if match["sign"] == "-" else 1)
        elif i.mnemonic in ("adr", "adrp") and (page := _target(i.operands)) is not None:
            pages[operands[0]] = page
            yield page
        elif i.mnemonic == "add" and len(operands) == 3 and operands[1] in pages and (low := _target(i.operands)) is not None:
            yield pages[operands[1]] + low


_ARM_BRANCHES = ("b", "bl", "br", "blr", "cbz", "cbnz", "tbz", "tbnz", "braa", "brab", "blraa", "blrab")


def _branch(arch: str, i: Instruction) -> Branch | None:
    if arch == "x86_64":
        is_branch, is_call = i.mnemonic.startswith("j") or i.mnemonic == "call", i.mnemonic == "call"
    else:
        is_branch, is_call = i.mnemonic in _ARM_BRANCHES or i.mnemonic.startswith("b."), i.mnemonic.startswith("bl")
    return Branch(i, _target(i.operands), is_call) if is_branch else None


def _target(operands: str) -> int | None:
    """The last operand where it is a number, which capstone writes as an absolute address."""
    try:
        return int(operands.rpartition(",")[2].strip().lstrip("#"), 0)
    except ValueError:
        return None


def _is_return(i: Instruction) -> bool:
    return i.mnemonic == "ret" and i.operands in ("", "x30")


def _stack_bound(bodies: dict[int, Body], entry: int) -> tuple[int, list[Finding]]:
    """The deepest path of calls, or where functions recurse."""
    depth: dict[int, int] = {}
    open_calls: list[int] = []
    findings: list[Finding] = []

    def visit(offset: int) -> int:
        if offset in open_calls:
            name = bodies[offset].function.name
            findings.append(Finding(name, offset, "", "is called recursively"))
            return 0
        if offset not in depth:
            open_calls.append(offset)
            depth[offset] = bodies[offset].frame + _deepest(visit(c) for c in bodies[offset].callees if c in bodies)
            open_calls.pop()
        return depth[offset]

    return visit(entry), findings


def _deepest(depths: Iterable[int]) -> int:
    return max(depths, default=0)
