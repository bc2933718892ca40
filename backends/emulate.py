"""Running foreign programs: a flat image under unicorn (pip alone), or under qemu-user (`qemu`).

Buffers are laid out so that mistakes show: every input and output ends at the end of a page with nothing mapped behind it, inputs may not be
written, the image may not be written, and the arena is the caller's memory itself. Image and arena are mapped, not copied.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import unicorn as untyped_unicorn
from numpy.typing import NDArray
from unicorn import arm64_const, x86_const

from qcompiler.runtime.arena import allocate
from qcompiler.runtime.artifact import Interface, Manifest, read_manifest
from qcompiler.runtime.cpu import mismatch
from qcompiler.runtime.errors import MachineError
from qcompiler.runtime.executor import Array, Call, Executor, check_status, open_image, open_native
from qcompiler.runtime.program import Program

from .image import PAGE, Image, align
from .qemu import QemuExecutor

unicorn: Any = untyped_unicorn
READ, WRITE, EXECUTE = unicorn.UC_PROT_READ, unicorn.UC_PROT_WRITE, unicorn.UC_PROT_EXEC
IMAGE, STACK, RETURN, TABLES, ARENA, BUFFERS, SPACING = 1 << 32, 2 << 32, 3 << 32, 4 << 32, 5 << 32, 6 << 32, 1 << 32
STACK_SIZE = 1 << 20
POOL = RETURN + (1 << 20)
"""A zeroed page that the parallel entries may be given as their pool."""
RED_ZONE = 128  # System V x86-64 psABI 3.2.2


@dataclass(frozen=True)
class Machine:
    """How unicorn is told to be a CPU: registers of the first five arguments, of the result and of the stack, and what it can do."""

    arch: int
    mode: int
    cpu: int
    arguments: tuple[int, ...]
    result: int
    stack: int
    features: frozenset[str]


MACHINES = {
    "aarch64": Machine(
        unicorn.UC_ARCH_ARM64,
        unicorn.UC_MODE_ARM,
        arm64_const.UC_CPU_ARM64_MAX,
        tuple(getattr(arm64_const, f"UC_ARM64_REG_X{n}") for n in range(5)),
        arm64_const.UC_ARM64_REG_W0,
        arm64_const.UC_ARM64_REG_SP,
        frozenset({"neon", "dotprod", "rdm", "lse", "crc", "fullfp16"}),
    ),
    "x86_64": Machine(
        unicorn.UC_ARCH_X86,
        unicorn.UC_MODE_64,
        x86_const.UC_CPU_X86_CASCADELAKE_SERVER,
        tuple(getattr(x86_const, f"UC_X86_REG_{r}") for r in ("RDI", "RSI", "RDX", "RCX", "R8")),
        x86_const.UC_X86_REG_EAX,
        x86_const.UC_X86_REG_RSP,
        frozenset({"sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "cx16"}),
    ),
}
"""What unicorn 2.1 (the translator of QEMU 5.0) executes; it has neither AVX nor the Arm matrix instructions."""


class UnicornExecutor:
    """Runs entries of a flat image in an emulated CPU; calls take turns."""

    def __init__(self, image: NDArray[np.uint8], entries: Mapping[str, int], arch: str) -> None:
        self.entries = dict(entries)
        self.instructions = 0
        self._machine = MACHINES[arch]
        self._lock = threading.Lock()
        self._image = _whole_pages(image)
        self._cpu = unicorn.Uc(self._machine.arch, self._machine.mode, self._machine.cpu)
        self._cpu.mem_map_ptr(IMAGE, len(self._image), READ | EXECUTE, self._image.ctypes.data)
        self._cpu.mem_map(STACK, STACK_SIZE, READ | WRITE)
        self._cpu.mem_map(RETURN, PAGE, READ | EXECUTE)
        self._cpu.mem_map(POOL, PAGE, READ | WRITE)

    @classmethod
    def of_image(cls, image: bytes | bytearray, entries: Mapping[str, int], arch: str) -> UnicornExecutor:
        """An image in memory."""
        return cls(np.frombuffer(image, np.uint8), entries, arch)

    @contextmanager
    def counting(self, buffer: int | None = None) -> Iterator[list[int]]:
        """Meanwhile, count the instructions executed into `instructions` (arm64: they are four bytes each).

        Yields a list which gets the count at every store to the `buffer` of this number, inputs first.
        """
        if self._machine is not MACHINES["aarch64"]:
            raise MachineError("expected an arm64 program, found x86-64: only instructions of one size are counted")
        self.instructions = 0
        marks = list[int]()
        hooks = [self._cpu.hook_add(unicorn.UC_HOOK_BLOCK, self._count)]
        if buffer is not None:
            place = BUFFERS + buffer * SPACING
            hooks.append(self._cpu.hook_add(unicorn.UC_HOOK_MEM_WRITE, lambda *_: marks.append(self.instructions), None, place, place + SPACING - 1))
        try:
            yield marks
        finally:
            for hook in hooks:
                self._cpu.hook_del(hook)

    @contextmanager
    def tracing(self) -> Iterator[Counter[tuple[int, int]]]:
        """Meanwhile, count how often each basic block is executed, by its (offset in the image, bytes)."""
        blocks = Counter[tuple[int, int]]()
        end = IMAGE + len(self._image)

        def count(_cpu: Any, address: int, size: int, _data: Any) -> None:
            if IMAGE <= address < end:
                blocks[address - IMAGE, size] += 1

        hook = self._cpu.hook_add(unicorn.UC_HOOK_BLOCK, count)
        try:
            yield blocks
        finally:
            self._cpu.hook_del(hook)

    def _count(self, _cpu: Any, _address: int, size: int, _data: Any) -> None:
        self.instructions += size // 4

    def call(self, entry: str, inputs: Sequence[Array], outputs: Sequence[Array], arena: NDArray[np.uint8]) -> None:
        """As `Executor.call`."""
        self._run(entry, (), inputs, outputs, arena)

    def divided(self, entry: str, parallel_for: int, pool: int = POOL) -> Call:
        """As `NativeExecutor.divided`; addresses are emulated ones."""
        return partial(self._run, entry, (parallel_for, pool))

    def address(self, entry: str) -> int:
        """Where a function of the image is."""
        return IMAGE + self.entries[entry]

    def _run(self, entry: str, further: tuple[int, ...], inputs: Sequence[Array], outputs: Sequence[Array], arena: NDArray[np.uint8]) -> None:
        with self._lock, self._mapped(inputs, outputs, arena) as (arguments, places):
            status = self._start(entry, (*arguments, *further))
            for array, place in zip(outputs, places):
                array[...] = np.frombuffer(self._cpu.mem_read(place, array.nbytes), array.dtype).reshape(array.shape)
        check_status(entry, status)

    def _start(self, entry: str, arguments: tuple[int, ...]) -> int:
        for register, value in zip(self._machine.arguments, arguments):
            self._cpu.reg_write(register, value)
        self._set_return()
        try:
            self._cpu.emu_start(self.address(entry), RETURN)
        except unicorn.UcError as problem:
            raise MachineError(f"emulating {entry} stopped: {problem}{self._where()}") from problem
        return int(self._cpu.reg_read(self._machine.result))

    def _set_return(self) -> None:
        """Stack and return address, as after a call."""
        top = STACK + STACK_SIZE - RED_ZONE
        if self._machine is MACHINES["aarch64"]:
            self._cpu.reg_write(arm64_const.UC_ARM64_REG_X30, RETURN)
        else:
            top -= 8
            self._cpu.mem_write(top, RETURN.to_bytes(8, "little"))
        self._cpu.reg_write(self._machine.stack, top)

    def _where(self) -> str:
        counter = arm64_const.UC_ARM64_REG_PC if self._machine is MACHINES["aarch64"] else x86_const.UC_X86_REG_RIP
        return f" at {self._cpu.reg_read(counter) - IMAGE:#x} of the image"

    @contextmanager
    def _mapped(
        self, inputs: Sequence[Array], outputs: Sequence[Array], arena: NDArray[np.uint8]
    ) -> Iterator[tuple[tuple[int, int, int], list[int]]]:
        """Buffers in the emulated memory: the three arguments of the entry, and where the outputs are."""
        regions = [self._map_arena(arena)]
        try:
            places = []
            for index, array in enumerate((*inputs, *outputs)):
                regions.append((BUFFERS + index * SPACING, align(max(array.nbytes, 1), PAGE)))
                places.append(self._map_buffer(*regions[-1], array, READ if index < len(inputs) else READ | WRITE))
            regions.append((TABLES, align(8 * len(places) + 1, PAGE)))
            self._cpu.mem_map(*regions[-1], READ)
            self._cpu.mem_write(TABLES, np.array(places, np.uint64).tobytes())
            yield (TABLES, TABLES + 8 * len(inputs), ARENA), places[len(inputs) :]
        finally:
            for region in regions:
                self._cpu.mem_unmap(*region)

    def _map_arena(self, arena: NDArray[np.uint8]) -> tuple[int, int]:
        """The caller's memory itself; arenas of `runtime.arena` are whole pages."""
        memory = arena if arena.ctypes.data % PAGE == 0 else allocate(arena.nbytes)
        region = (ARENA, align(max(arena.nbytes, 1), PAGE))
        self._arena = memory
        self._cpu.mem_map_ptr(*region, READ | WRITE, memory.ctypes.data)
        return region

    def _map_buffer(self, base: int, room: int, array: Array, access: int) -> int:
        """A copy of `array` that ends where its pages end."""
        self._cpu.mem_map(base, room, access)
        place = base + room - array.nbytes
        self._cpu.mem_write(place, array.tobytes())
        return place


def _whole_pages(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image where its first byte is on a page, else a copy of it."""
    if image.ctypes.data % PAGE == 0 and len(image) % PAGE == 0:
        return image
    copy = allocate(align(len(image), PAGE))
    copy[: len(image)] = image
    return copy


def emulates(arch: str, features: Collection[str]) -> bool:
    """Whether unicorn executes the instructions of `features` (LLVM's names)."""
    return arch in MACHINES and MACHINES[arch].features.issuperset(features)


def emulated(interface: Interface, image: Image, features: Collection[str] = ()) -> Program:
    """A program in memory under emulation: unicorn, or qemu-user where unicorn lacks one of `features`."""
    if emulates(image.arch, features):
        return Program(interface, UnicornExecutor.of_image(image.data, image.entries, image.arch))
    return Program(interface, QemuExecutor(image.data, image.entries, image.arch))


def load(path: str | os.PathLike[str]) -> Program:
    """As `qcompiler.runtime.load`, but programs for other machines are emulated."""
    folder, manifest = Path(path), read_manifest(path)
    return Program(manifest.interface, _executor(folder, manifest))


def _executor(folder: Path, manifest: Manifest) -> Executor:
    target = manifest.target
    if mismatch(target.arch, target.os, target.features) is None:
        return open_native(folder, manifest)
    if target.os == "windows":
        raise MachineError(f"'{folder}' is compiled for windows, whose calling convention is not emulated; compile for linux")
    if emulates(target.arch, target.features):
        return UnicornExecutor(open_image(folder, manifest), manifest.entries, target.arch)
    return QemuExecutor(bytes(open_image(folder, manifest).data), manifest.entries, target.arch)
