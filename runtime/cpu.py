"""Whether this machine can run a program: architecture, operating system and CPU features."""

from __future__ import annotations

import platform
import sys
from collections.abc import Collection, Iterable
from functools import cache
from pathlib import Path

_ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}

# LLVM's names (which the manifest uses) -> those of Linux's /proc/cpuinfo, where they differ.
_X86_FLAGS = {
    "sse3": "pni",
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
    "bmi": "bmi1",
    "lzcnt": "abm",
    "avxvnni": "avx_vnni",
    "avxvnniint8": "avx_vnni_int8",
    "avx512vnni": "avx512_vnni",
    "avx512vbmi2": "avx512_vbmi2",
    "avx512bf16": "avx512_bf16",
    "avx512bitalg": "avx512_bitalg",
    "avx512vpopcntdq": "avx512_vpopcntdq",
}
_ARM_FLAGS = {"neon": "asimd", "dotprod": "asimddp", "rdm": "asimdrdm", "fullfp16": "asimdhp", "lse": "atomics", "crc": "crc32"}
_FLAGS = {"x86_64": _X86_FLAGS, "aarch64": _ARM_FLAGS}

# Targets of the compiler, best first, by the feature that decides.
_ADVICE = {
    "x86_64": (("avx512vnni", "x86-64-avx512vnni"), ("avxvnni", "x86-64-avxvnni"), ("avx2", "x86-64-avx2"), ("sse4.1", "x86-64")),
    "aarch64": (("i8mm", "arm64-i8mm"), ("dotprod", "arm64-dotprod"), ("neon", "arm64")),
}


def machine_arch() -> str:
    """Architecture of this machine as LLVM spells it: x86_64, aarch64 ..."""
    return arch_named(platform.machine())


def arch_named(machine: str) -> str:
    """LLVM's name of what `uname -m` says."""
    return _ARCHITECTURES.get(machine.lower(), machine.lower())


@cache
def cpu_flags() -> frozenset[str] | None:
    """The features that Linux reports; None where there is no /proc/cpuinfo to read."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    found = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(found, "").split()) or None


@cache
def cpu_name() -> str:
    """The CPU's own name, for reports."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def missing_features(features: Iterable[str], arch: str) -> list[str]:
    """Those of `features` (LLVM's names) that this CPU lacks; none where the system does not tell."""
    flags = cpu_flags()
    return [] if flags is None else lacking(features, arch, flags)


def lacking(features: Iterable[str], arch: str, flags: Collection[str]) -> list[str]:
    """Those of `features` (LLVM's names) that are not among the `flags` of a CPU (Linux's names)."""
    names = _FLAGS.get(arch, {})
    return [f for f in features if names.get(f, f) not in flags]


def advice() -> str:
    """The target to compile for on this machine."""
    rows = _ADVICE.get(machine_arch(), ())
    return next((target for feature, target in rows if not missing_features([feature], machine_arch())), "host")


def mismatch(arch: str, os: str, features: Iterable[str]) -> str | None:
    """Why this machine cannot run such code, or None."""
    if arch != machine_arch():
        return f"expected a machine of architecture {arch}, found {machine_arch()}; compile with --target {advice()}"
    if (os == "windows") != (sys.platform == "win32"):
        return f"expected the calling convention of {os}, found {sys.platform}; compile with --target host"
    if missing := missing_features(features, arch):
        return f"expected CPU features {', '.join(features)}, found a CPU without {', '.join(missing)}; compile with --target {advice()}"
    return None
