"""A flat image -> a static Linux executable, without compiler, linker or libc: what runs a program on another machine or under qemu-user.

It reads calls from its standard input and answers on its standard output, in 64-bit little-endian words:

    call:   entry, number of inputs, number of outputs, bytes of the arena, repetitions, bytes of each buffer; then the inputs
    answer: nanoseconds of each repetition, what the entry returned; then the outputs

and ends with its input: with status 0 between calls, 2 within one or where memory is not to be had. The file holds two loadable segments:

    RUNNER    ELF header, then the code below, which LLVM compiles
    PROGRAM   the flat image; the addresses of its entries are constants of the runner

Numbers of system calls: Linux, arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h. ELF: System V gABI, chapters 4 and 5.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import llvmlite.binding as llvm

from .image import align, flatten
from .llvm.target import initialize

RUNNER, PROGRAM = 0x400000, 0x10000000
_PAGE = 1 << 16  # the largest of arm64
_HEADERS = 64 + 2 * 56


@dataclass(frozen=True)
class System:
    """An architecture under Linux: ELF's number, system calls, and `long syscall(long number, long a, ..., long f)` in machine code."""

    machine: int
    read: int
    write: int
    mmap: int
    munmap: int
    exit: int
    clock: int
    syscall: bytes


SYSTEMS = {
    # mov rax, rdi; mov rdi, rsi; mov rsi, rdx; mov rdx, rcx; mov r10, r8; mov r8, r9; mov r9, [rsp+8]; syscall; ret
    "x86_64": System(62, 0, 1, 9, 11, 231, 228, bytes.fromhex("4889f8 4889f7 4889d6 4889ca 4d89c2 4d89c8 4c8b4c2408 0f05 c3")),
    # mov x8, x0; mov x0, x1; mov x1, x2; mov x2, x3; mov x3, x4; mov x4, x5; mov x5, x6; svc #0; ret
    "aarch64": System(
        183, 63, 64, 222, 215, 94, 113, bytes.fromhex("e80300aa e00301aa e10302aa e20303aa e30304aa e40305aa e50306aa 010000d4 c0035fd6")
    ),
}

# The stack of a new process is aligned to 16 bytes where functions of x86-64 expect a return address on it: "stackrealign".
_SOURCE = """
target triple = "{arch}-unknown-linux-gnu"
@system = internal constant [{length} x i8] c"{syscall}", align 16
@entries = internal constant [{count} x i64] [{entries}]

define internal i64 @call(i64 %n, i64 %a, i64 %b, i64 %c) {{
  %r = call i64 @system(i64 %n, i64 %a, i64 %b, i64 %c, i64 34, i64 -1, i64 0)
  ret i64 %r
}}

define internal void @stop(i64 %status) {{
  %r = call i64 @call(i64 {exit}, i64 %status, i64 0, i64 0)
  unreachable
}}

; All of `size` bytes, or the end of the process: with `status` where nothing was moved, else 2.
define internal void @move(i64 %call, i64 %file, i64 %start, i64 %size, i64 %status) {{
begin:
  br label %head
head:
  %done = phi i64 [0, %begin], [%next, %moved]
  %more = icmp ult i64 %done, %size
  br i1 %more, label %body, label %end
body:
  %at = add i64 %start, %done
  %left = sub i64 %size, %done
  %n = call i64 @call(i64 %call, i64 %file, i64 %at, i64 %left)
  %good = icmp sgt i64 %n, 0
  br i1 %good, label %moved, label %failed
failed:
  %nothing = icmp eq i64 %done, 0
  %code = select i1 %nothing, i64 %status, i64 2
  call void @stop(i64 %code)
  unreachable
moved:
  %next = add i64 %done, %n
  br label %head
end:
  ret void
}}

define internal i64 @memory(i64 %size) {{
  %address = call i64 @call(i64 {mmap}, i64 0, i64 %size, i64 3)
  %bad = icmp slt i64 %address, 0
  br i1 %bad, label %failed, label %end
failed:
  call void @stop(i64 2)
  unreachable
end:
  ret i64 %address
}}

define internal i64 @now() {{
  %time = alloca [2 x i64]
  %at = ptrtoint ptr %time to i64
  %r = call i64 @call(i64 {clock}, i64 1, i64 %at, i64 0)
  %seconds = load volatile i64, ptr %time
  %rest = getelementptr i64, ptr %time, i64 1
  %nanoseconds = load volatile i64, ptr %rest
  %large = mul i64 %seconds, 1000000000
  %sum = add i64 %large, %nanoseconds
  ret i64 %sum
}}

; Bytes of a buffer with the room that kernels may read behind it, on a multiple of 64.
define internal i64 @room(i64 %size) {{
  %more = add i64 %size, 191
  %whole = and i64 %more, -64
  ret i64 %whole
}}

define internal void @serve(ptr %head) {{
begin:
  %place = ptrtoint ptr %head to i64
  call void @move(i64 {read}, i64 0, i64 %place, i64 40, i64 0)
  %entry = load volatile i64, ptr %head
  %h1 = getelementptr i64, ptr %head, i64 1
  %inputs = load volatile i64, ptr %h1
  %h2 = getelementptr i64, ptr %head, i64 2
  %outputs = load volatile i64, ptr %h2
  %h3 = getelementptr i64, ptr %head, i64 3
  %arena = load volatile i64, ptr %h3
  %h4 = getelementptr i64, ptr %head, i64 4
  %repetitions = load volatile i64, ptr %h4
  %known = icmp ult i64 %entry, {count}
  br i1 %known, label %found, label %unknown
unknown:
  call void @stop(i64 2)
  unreachable
found:
  %slot = getelementptr i64, ptr @entries, i64 %entry
  %address = load i64, ptr %slot
  %function = inttoptr i64 %address to ptr
  %n = add i64 %inputs, %outputs
  %bytes = mul i64 %n, 8
  %times = mul i64 %repetitions, 8
  %tables0 = mul i64 %bytes, 2
  %tables1 = add i64 %tables0, %times
  %tables2 = add i64 %tables1, 8
  %tables = call i64 @memory(i64 %tables2)
  call void @move(i64 {read}, i64 0, i64 %tables, i64 %bytes, i64 2)
  %sizes = inttoptr i64 %tables to ptr
  %pointers = getelementptr i64, ptr %sizes, i64 %n
  %clocks = getelementptr i64, ptr %pointers, i64 %n
  %first = call i64 @room(i64 %arena)
  br label %sum
sum:
  %i = phi i64 [0, %found], [%i.next, %sum.body]
  %total = phi i64 [%first, %found], [%total.next, %sum.body]
  %sum.more = icmp ult i64 %i, %n
  br i1 %sum.more, label %sum.body, label %allocate
sum.body:
  %size.at = getelementptr i64, ptr %sizes, i64 %i
  %size = load volatile i64, ptr %size.at
  %pointer.at = getelementptr i64, ptr %pointers, i64 %i
  store volatile i64 %total, ptr %pointer.at
  %size.room = call i64 @room(i64 %size)
  %total.next = add i64 %total, %size.room
  %i.next = add i64 %i, 1
  br label %sum
allocate:
  %block = call i64 @memory(i64 %total)
  br label %place.head
place.head:
  %j = phi i64 [0, %allocate], [%j.next, %placed]
  %place.more = icmp ult i64 %j, %n
  br i1 %place.more, label %place.body, label %ready
place.body:
  %there = getelementptr i64, ptr %pointers, i64 %j
  %offset = load volatile i64, ptr %there
  %buffer = add i64 %block, %offset
  store volatile i64 %buffer, ptr %there
  %is.input = icmp ult i64 %j, %inputs
  br i1 %is.input, label %take, label %placed
take:
  %take.at = getelementptr i64, ptr %sizes, i64 %j
  %take.size = load volatile i64, ptr %take.at
  call void @move(i64 {read}, i64 0, i64 %buffer, i64 %take.size, i64 2)
  br label %placed
placed:
  %j.next = add i64 %j, 1
  br label %place.head
ready:
  %results = getelementptr i64, ptr %pointers, i64 %inputs
  %working = inttoptr i64 %block to ptr
  br label %run
run:
  %k = phi i64 [0, %ready], [%k.next, %run.body]
  %last = phi i64 [0, %ready], [%status, %run.body]
  %run.more = icmp ult i64 %k, %repetitions
  br i1 %run.more, label %run.body, label %answer
run.body:
  %start = call i64 @now()
  %returned = call i32 %function(ptr %pointers, ptr %results, ptr %working)
  %stop = call i64 @now()
  %status = sext i32 %returned to i64
  %took = sub i64 %stop, %start
  %clock.at = getelementptr i64, ptr %clocks, i64 %k
  store volatile i64 %took, ptr %clock.at
  %k.next = add i64 %k, 1
  br label %run
answer:
  %last.at = getelementptr i64, ptr %clocks, i64 %repetitions
  store volatile i64 %last, ptr %last.at
  %clocks.place = ptrtoint ptr %clocks to i64
  %answer.size = add i64 %times, 8
  call void @move(i64 {write}, i64 1, i64 %clocks.place, i64 %answer.size, i64 2)
  br label %give
give:
  %m = phi i64 [%inputs, %answer], [%m.next, %give.body]
  %give.more = icmp ult i64 %m, %n
  br i1 %give.more, label %give.body, label %end
give.body:
  %give.at = getelementptr i64, ptr %sizes, i64 %m
  %give.size = load volatile i64, ptr %give.at
  %from.at = getelementptr i64, ptr %pointers, i64 %m
  %from = load volatile i64, ptr %from.at
  call void @move(i64 {write}, i64 1, i64 %from, i64 %give.size, i64 2)
  %m.next = add i64 %m, 1
  br label %give
end:
  %freed = call i64 @call(i64 {munmap}, i64 %block, i64 %total, i64 0)
  %freed.too = call i64 @call(i64 {munmap}, i64 %tables, i64 %tables2, i64 0)
  ret void
}}

define void @start() noreturn "stackrealign" {{
begin:
  %head = alloca [5 x i64]
  br label %again
again:
  call void @serve(ptr %head)
  br label %again
}}
"""


def executable(image: bytes | bytearray, arch: str, entries: Mapping[str, int], names: Sequence[str]) -> bytes:
    """A static ELF executable that serves calls of the entries `names`, numbered in this order; `entries`: their offsets in `image`."""
    system = SYSTEMS[arch]
    runner = flatten(_compiled(system, arch, [PROGRAM + entries[name] for name in names]))
    room = align(_HEADERS, 4096)
    size = room + len(runner.data)
    place = align(size, _PAGE)
    head = _elf_header(system, RUNNER + room + runner.entries["start"])
    segments = _segment(0, RUNNER, size) + _segment(place, PROGRAM, len(image))
    return b"".join([(head + segments).ljust(room, b"\0"), bytes(runner.data).ljust(place - room, b"\0"), bytes(image)])


def _compiled(system: System, arch: str, addresses: Sequence[int]) -> bytes:
    text = _SOURCE.format(
        arch=arch,
        length=len(system.syscall),
        syscall="".join(f"\\{byte:02x}" for byte in system.syscall),
        count=len(addresses),
        entries=", ".join(f"i64 {a}" for a in addresses),
        **{name: getattr(system, name) for name in ("read", "write", "mmap", "munmap", "exit", "clock")},
    )
    initialize()
    machine = llvm.Target.from_triple(f"{arch}-unknown-linux-gnu").create_target_machine(opt=1, reloc="pic", codemodel="small")
    module = llvm.parse_assembly(text)
    module.verify()
    return bytes(machine.emit_object(module))


def _elf_header(system: System, start: int) -> bytes:
    """ET_EXEC, two program headers behind it, no sections."""
    identification = b"\x7fELF" + bytes([2, 1, 1, 0]) + bytes(8)
    return identification + struct.pack("<HHIQQQIHHHHHH", 2, system.machine, 1, start, 64, 0, 0, 64, 56, 2, 0, 0, 0)


def _segment(offset: int, address: int, size: int) -> bytes:
    """PT_LOAD, readable and executable."""
    return struct.pack("<IIQQQQQQ", 1, 5, offset, address, address, size, size, _PAGE)
