"""Executable memory: a flat image mapped from its file, or from bytes, per operating system.

Linux and others map the file read-only and executable: no byte of the weights is copied, and processes share them. Bytes in memory take the same
way through an anonymous file (memfd), so no page is ever writable and executable. Apple silicon runs unsigned code only from MAP_JIT
memory, and Windows wants VirtualAlloc: there the image is copied once.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from .errors import ArtifactError, MachineError

FORBIDDEN, REMEDY = "this system forbids mapping code", "install a C compiler and compile again, which then links a shared library"
Code = NDArray[np.uint8]


def map_file(path: Path) -> Code:
    """The image in `path`, executable."""
    try:
        with path.open("rb") as file:
            return _map_open(file)
    except (OSError, ValueError) as problem:
        raise ArtifactError(f"cannot read the image '{path}': {problem}") from problem


def map_bytes(image: bytes | bytearray) -> Code:
    """An image in memory, executable."""
    if _copies():
        return _copy_executable(image)
    with _anonymous_file() as file:
        file.write(image)
        file.flush()
        return _map_open(file)


def _map_open(file: IO[bytes]) -> Code:
    if _copies():
        return _copy_executable(file.read())
    try:
        mapping = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_EXEC)
    except PermissionError as problem:
        raise MachineError(f"{FORBIDDEN} ({problem}); {REMEDY}") from problem
    return np.frombuffer(mapping, np.uint8)


def _anonymous_file() -> IO[bytes]:
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("qcompiler"), "w+b")
    return tempfile.TemporaryFile()


def _copies() -> bool:
    """Whether code cannot be mapped from a file here."""
    return sys.platform == "win32" or (sys.platform == "darwin" and platform.machine() == "arm64")


def _copy_executable(image: bytes | bytearray) -> Code:
    address = _windows_memory(image) if sys.platform == "win32" else _apple_memory(image)
    return np.ctypeslib.as_array((ctypes.c_uint8 * len(image)).from_address(address))


def _windows_memory(image: bytes | bytearray) -> int:
    """VirtualAlloc read-write, copy, VirtualProtect execute-read; freed with the process."""
    kernel: Any = ctypes.windll.kernel32  # type: ignore[attr-defined,unused-ignore]
    kernel.VirtualAlloc.restype = ctypes.c_void_p
    kernel.VirtualProtect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_ulong, ctypes.POINTER(ctypes.c_ulong)]
    address = kernel.VirtualAlloc(None, ctypes.c_size_t(len(image)), 0x3000, 0x04)  # MEM_COMMIT | MEM_RESERVE, PAGE_READWRITE
    if not address:
        raise MachineError(f"no memory for an image of {len(image)} bytes")
    ctypes.memmove(address, bytes(image), len(image))
    if not kernel.VirtualProtect(address, len(image), 0x20, ctypes.byref(ctypes.c_ulong())):  # PAGE_EXECUTE_READ
        raise MachineError(f"{FORBIDDEN}; {REMEDY}")
    return int(address)


def _apple_memory(image: bytes | bytearray) -> int:
    """MAP_JIT memory (Apple: "Porting just-in-time compilers to Apple silicon"); freed with the process."""
    libc: Any = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_longlong]
    address = libc.mmap(None, len(image), 7, 0x0002 | 0x1000 | 0x0800, -1, 0)  # read, write, execute; MAP_PRIVATE | MAP_ANON | MAP_JIT
    if address in (None, ctypes.c_void_p(-1).value):
        raise MachineError(f"{FORBIDDEN}; {REMEDY}")
    libc.pthread_jit_write_protect_np(0)
    ctypes.memmove(address, bytes(image), len(image))
    libc.pthread_jit_write_protect_np(1)
    libc.sys_icache_invalidate(ctypes.c_void_p(address), ctypes.c_size_t(len(image)))
    return int(address)
