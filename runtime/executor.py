"""Calling compiled code: one protocol, whether the code is mapped, dlopened or emulated."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .artifact import IMAGE, LIBRARIES, OUT_OF_RANGE, Manifest, checksum, digest, file_checksum, file_digest
from .cpu import mismatch
from .errors import ArtifactError, MachineError, OutOfRange
from .memory import Code, map_bytes, map_file

Array = NDArray[Any]
Call = Callable[[Sequence[Array], Sequence[Array], NDArray[np.uint8]], None]

# int run(const void *const *inputs, void *const *outputs, void *arena)
_ARGUMENTS = (ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)
_Signature = ctypes.CFUNCTYPE(ctypes.c_int, *_ARGUMENTS)
# int run_parallel(..., parallel_for, void *pool)
_ParallelSignature = ctypes.CFUNCTYPE(ctypes.c_int, *_ARGUMENTS, ctypes.c_void_p, ctypes.c_void_p)


class Executor(Protocol):
    """What runs an entry of a program on dense arrays; re-entrant where the code is native."""

    def call(self, entry: str, inputs: Sequence[Array], outputs: Sequence[Array], arena: NDArray[np.uint8]) -> None:
        """Run `entry`, which writes `outputs`; `arena` is working memory, aligned to 64."""
        ...


class NativeExecutor:
    """Calls functions by their address; `owner` keeps the code alive."""

    def __init__(self, addresses: Mapping[str, int], owner: object) -> None:
        self.addresses = dict(addresses)
        self.owner = owner
        self._functions = {name: _Signature(address) for name, address in addresses.items()}
        self._parallel = {name: _ParallelSignature(address) for name, address in addresses.items()}

    def call(self, entry: str, inputs: Sequence[Array], outputs: Sequence[Array], arena: NDArray[np.uint8]) -> None:
        """As `Executor.call`; the interpreter's lock is released meanwhile."""
        status = self._functions[entry](_pointers(inputs), _pointers(outputs), address_of(arena))
        check_status(entry, status)

    def divided(self, entry: str, parallel_for: int, pool: int) -> Call:
        """As `call` with `entry`, one that has its work divided by the function at `parallel_for`."""
        function = self._parallel[entry]

        def call(inputs: Sequence[Array], outputs: Sequence[Array], arena: NDArray[np.uint8]) -> None:
            check_status(entry, function(_pointers(inputs), _pointers(outputs), address_of(arena), parallel_for, pool))

        return call

    @classmethod
    def of_code(cls, code: Code, entries: Mapping[str, int]) -> NativeExecutor:
        """Functions at `entries` of a mapped image."""
        for name, offset in entries.items():
            if not 0 <= offset < len(code):
                raise ArtifactError(f"entry {name} is at {offset}, outside its image of {len(code)} bytes")
        return cls({name: code.ctypes.data + offset for name, offset in entries.items()}, code)

    @classmethod
    def of_image(cls, image: bytes | bytearray, entries: Mapping[str, int]) -> NativeExecutor:
        """An image in memory."""
        return cls.of_code(map_bytes(image), entries)

    @classmethod
    def of_library(cls, path: Path, names: Iterable[str]) -> NativeExecutor:
        """Functions of a shared library."""
        library = ctypes.CDLL(str(path.resolve()))
        return cls({name: ctypes.cast(library[name], ctypes.c_void_p).value or 0 for name in names}, library)


def check_status(entry: str, status: int) -> None:
    """Programs return 0, or say which input is out of range."""
    if status & 0xFF == OUT_OF_RANGE:
        raise OutOfRange(entry, status >> 8)
    if status != 0:
        raise MachineError(f"expected {entry} to return 0, found {status}")


def _pointers(arrays: Sequence[Array]) -> Any:
    return _pointer_table(len(arrays))(*map(address_of, arrays))


@cache
def _pointer_table(length: int) -> Any:
    return ctypes.c_void_p * length


def address_of(array: Any) -> int:
    """`array.ctypes.data`, of which a small program does several per call, in a fourth of the time where the array may be written."""
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(array))
    except (TypeError, ValueError, BufferError):
        return int(array.ctypes.data)


def open_native(folder: Path, manifest: Manifest) -> NativeExecutor:
    """The program of an artifact, on this machine: its shared library where there is one, else its image."""
    target = manifest.target
    if why := mismatch(target.arch, target.os, target.features):
        raise MachineError(f"'{folder}' is compiled for {target.name}: {why}")
    library = LIBRARIES.get(target.os, "")
    if library in manifest.files:
        _check_file(manifest, library, existing(folder, library))
        try:
            return NativeExecutor.of_library(folder / library, manifest.interface.symbols)
        except (OSError, AttributeError):  # of another libc, or a folder mounted noexec: the image may still do
            pass
    return NativeExecutor.of_code(open_image(folder, manifest), manifest.entries)


def open_image(folder: Path, manifest: Manifest) -> Code:
    """The image of an artifact, mapped, its digest verified."""
    if IMAGE not in manifest.files:
        raise ArtifactError(f"expected {IMAGE} in '{folder}', found none: programs for {manifest.target.os} run as libraries only")
    code = map_file(existing(folder, IMAGE))
    if "crc32" in manifest.files[IMAGE]:
        _check(manifest, IMAGE, "crc32", checksum(code.data))
    else:
        _check(manifest, IMAGE, "sha256", digest(code.data))
    return code


def existing(folder: Path, name: str) -> Path:
    """The path of a file of the artifact."""
    if not (folder / name).is_file():
        raise ArtifactError(f"expected {name} in '{folder}', found no such file; compile the model again")
    return folder / name


def _check_file(manifest: Manifest, name: str, path: Path) -> None:
    """Refuse a file that is not as it was written. `damaged_files` compares the SHA-256; here the faster checksum does, where there is one."""
    if "crc32" in manifest.files[name]:
        _check(manifest, name, "crc32", file_checksum(path))
    else:
        _check(manifest, name, "sha256", file_digest(path))


def _check(manifest: Manifest, name: str, kind: str, found: str | int) -> None:
    expected = manifest.files[name].get(kind)
    if found != expected:
        raise ArtifactError(f"{name} is damaged: expected {kind} {expected}, found {found}; compile the model again")
