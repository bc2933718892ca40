"""Shared libraries, where a linker is found: the system's compiler, a cross compiler, lld, or zig (`pip install qcompiler[link]`)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from shutil import which

from qcompiler.runtime.artifact import Platform
from qcompiler.runtime.cpu import machine_arch

_ELF_FLAGS = ("-Bsymbolic", "-znoexecstack", "--build-id=none")
_PAGES = "-zmax-page-size=16384"  # Android 15 and later; zig aligns to 64 KiB by itself
_HOST_OS = {"darwin": "macos", "win32": "windows"}.get(sys.platform, "linux")
_ZIG_OS = {"linux": "linux-gnu", "android": "linux-none", "macos": "macos-none", "windows": "windows-gnu"}
TIMEOUT = 600


def link_library(obj: Path, library: Path, target: Platform) -> str | None:
    """Link `obj` into `library`; the name of the linker that did it, or None where none is found or works."""
    for linker in linkers(target):
        library.unlink(missing_ok=True)
        if _runs([*linker, "-o", str(library), str(obj)], library):
            return Path(linker[0]).name
    library.unlink(missing_ok=True)
    return None


def _runs(command: list[str], library: Path) -> bool:
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and library.is_file()


def linkers(target: Platform) -> Iterator[list[str]]:
    """Commands that link a shared library for `target`, the likeliest first, without output and input."""
    for compiler in _compilers(target):
        if path := which(compiler):
            yield [path, *_flags(target), *([f"-Wl,{_PAGES}"] if target.os == "linux" else [])]
    if target.os in ("linux", "android") and (path := which("ld.lld")):
        yield [path, "-shared", *_ELF_FLAGS, _PAGES]
    if zig := _zig():
        yield [*zig, "cc", "-target", f"{target.arch}-{_ZIG_OS.get(target.os, target.os)}", *_flags(target)]


def _compilers(target: Platform) -> tuple[str, ...]:
    native = target.arch == machine_arch() and target.os == _HOST_OS
    if target.os == "linux":
        return (*(("cc", "gcc", "clang") if native else ()), f"{target.arch}-linux-gnu-gcc")
    return ("cc",) if target.os == _HOST_OS == "macos" else ()


def _flags(target: Platform) -> list[str]:
    if target.os == "macos":
        arch = {"aarch64": "arm64"}.get(target.arch, target.arch)
        return ["-dynamiclib", "-nostdlib", *(["-arch", arch] if _HOST_OS == "macos" else [])]
    return ["-shared", "-nostdlib", *(f"-Wl,{f}" for f in (("--no-entry",) if target.os == "windows" else _ELF_FLAGS))]


def _zig() -> list[str] | None:
    if path := which("zig"):
        return [path]
    return [sys.executable, "-m", "ziglang"] if find_spec("ziglang") else None
