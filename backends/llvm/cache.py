"""Machine code by the digest of what it is made from: the next compilation of the same kernels reads it from a file.

    key = SHA-256(format, passes, versions of llvmlite and LLVM, triple, CPU, features, LLVM text)

The weights are not part of it: `weights` puts them into the finished object. An entry is its payload behind the payload's own digest, so what a
full disk cut off or a bad one changed is not found rather than used. Entries are written beside their place and renamed: whoever compiles
at the same time finds a whole entry or none, and two who write the same one write the same bytes. A folder that cannot be read or
written costs nothing but time. The least recently used entries go when all of them take more than `LIMIT` bytes.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import llvmlite
import llvmlite.binding as llvm

from .codegen import PASSES
from .target import Target

FORMAT = "qcompiler object 1"
"""To be changed with what `codegen` does to a module between its text and the object, besides its passes."""
LIMIT = 256 << 20
"""Bytes of all entries."""
VARIABLE = "QC_CACHE"
"""Environment variable: another folder, or nothing for no cache."""
ENDING = ".o"


@dataclass(frozen=True)
class Cache:
    """Entries in `folder`; None: nothing is kept."""

    folder: Path | None = None
    limit: int = LIMIT

    def get(self, key: str, make: Callable[[], bytes]) -> bytes:
        """The payload of `key`, made where there is none."""
        if self.folder is None:
            return make()
        found = self._read(self.folder / f"{key}{ENDING}")
        if found is not None:
            return found
        payload = make()
        with suppress(OSError):
            self._write(self.folder, key, payload)
        return payload

    def _read(self, place: Path) -> bytes | None:
        try:
            content = place.read_bytes()
        except OSError:
            return None
        payload = content[32:]
        if sha256(payload).digest() != content[:32]:
            return None
        with suppress(OSError):
            os.utime(place)
        return payload

    def _write(self, folder: Path, key: str, payload: bytes) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        number, draft = tempfile.mkstemp(dir=folder)
        try:
            with os.fdopen(number, "wb") as file:
                file.write(sha256(payload).digest() + payload)
            os.replace(draft, folder / f"{key}{ENDING}")
        finally:
            with suppress(OSError):
                os.unlink(draft)
        self._trim(folder)

    def _trim(self, folder: Path) -> None:
        entries = sorted(_entries(folder), reverse=True)
        kept = 0
        for _, size, place in entries:
            kept += size
            if kept > self.limit:
                with suppress(OSError):
                    place.unlink()


NO_CACHE = Cache()


def _entries(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """(last use, bytes, file) of every entry; what others have removed meanwhile is passed over."""
    for place in folder.glob(f"*{ENDING}"):
        with suppress(OSError):
            about = place.stat()
            yield about.st_mtime, about.st_size, place


def default_folder() -> Path | None:
    """The folder that the environment names, else one in the user's cache folder; None where there is no home."""
    if (named := os.environ.get(VARIABLE)) is not None:
        return Path(named) if named else None
    try:
        return user_caches() / "qcompiler" / "objects"
    except RuntimeError:
        return None


def user_caches() -> Path:
    """Where this system keeps what can be made again. RuntimeError where there is no home."""
    if named := os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME"):
        return Path(named)
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")


def objects() -> Cache:
    """The user's cache."""
    return Cache(default_folder())


def key_of(text: str, target: Target) -> str:
    """The key of the object of a module's `text` for `target`."""
    versions = (llvmlite.__version__, *llvm.llvm_version_info)
    about = (FORMAT, PASSES, versions, target.triple, target.cpu, target.llvm_features, target.by_meaning)
    return sha256(f"{about}\0{text}".encode()).hexdigest()
