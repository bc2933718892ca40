"""Folders that appear whole or not at all: written beside their place, then exchanged with what is there."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from uuid import uuid4

from qcompiler.errors import UsageError

_AT_FDCWD, _EXCHANGE = -100, 2  # <fcntl.h>; RENAME_EXCHANGE of Linux and RENAME_SWAP of macOS


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """A new folder to write into, which takes the place of `folder` in the end; after any failure `folder` is as it was."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = folder.with_name(f".{folder.name}.{uuid4().hex[:12]}")
        staging.mkdir()
    except OSError as problem:
        raise _unwritable(folder, problem) from problem
    try:
        yield staging
        _publish(staging, folder)
    except OSError as problem:
        raise _unwritable(folder, problem) from problem
    finally:
        rmtree(staging, ignore_errors=True)


def _unwritable(folder: Path, problem: OSError) -> UsageError:
    return UsageError(f"cannot write '{folder}': {problem.strerror or problem}; choose a writable folder with room (what was there is unchanged)")


def _publish(staging: Path, folder: Path) -> None:
    """Put `staging` in the place of `folder`; the old content, if any, is then in `staging`."""
    if not folder.exists():
        staging.rename(folder)
    elif not _exchange(staging, folder):
        _swap(staging, folder)


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two folders in one step, where the system can."""
    call = _exchange_call()
    return call is not None and call(os.fsencode(a), os.fsencode(b)) == 0


def _exchange_call() -> Callable[[bytes, bytes], int] | None:
    if sys.platform == "win32":
        return None
    libc = ctypes.CDLL(None)
    if hasattr(libc, "renameat2"):
        return lambda a, b: int(libc.renameat2(_AT_FDCWD, a, _AT_FDCWD, b, ctypes.c_uint(_EXCHANGE)))
    if hasattr(libc, "renamex_np"):
        return lambda a, b: int(libc.renamex_np(a, b, ctypes.c_uint(_EXCHANGE)))
    return None


def _swap(staging: Path, folder: Path) -> None:
    """In two steps, the first undone where the second fails."""
    old = staging.with_name(f"{staging.name}.old")
    folder.rename(old)
    try:
        staging.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    rmtree(old, ignore_errors=True)
