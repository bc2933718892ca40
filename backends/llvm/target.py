"""What the kernels need to know of a machine: frozen rows, one per instruction set, times an operating system.

`Target.by_meaning` is the same row run on whatever CPU is here: every named instruction is written out as generic code of
the same bits, so that kernels, tiles and packings of absent instruction sets can be tested anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import llvmlite.binding as llvm

from qcompiler.errors import UsageError


@dataclass(frozen=True)
class Target:
    """One instruction set on one operating system."""

    name: str
    arch: str
    """x86_64 or aarch64."""
    cpu: str
    """LLVM's name of the CPU whose schedule is used; what it has beyond `features` is switched off."""
    features: tuple[str, ...]
    """LLVM features that must be present at run time, and nothing more."""
    vector_bits: int
    registers: int
    """Number of vector registers."""
    dot: str
    """Name of the form of dot products of four, see `dot.py`."""
    storage_offset: int = 0
    """Activations lie in memory as q + storage_offset (128: as unsigned bytes)."""
    dense: tuple[str, ...] = ()
    """Further forms that dense layers may have, the one of the highest peak last."""
    os: str = "linux"
    by_meaning: bool = False
    tuned: tuple[tuple[str, str], ...] = ()
    """Tiles that measurements chose, by problem (`kernels.tuned`)."""

    @property
    def vector_bytes(self) -> int:
        """Bytes of a vector register: the int8 lanes."""
        return self.vector_bits // 8

    @property
    def lanes(self) -> int:
        """int32 lanes of a vector register."""
        return self.vector_bits // 32

    @property
    def parts(self) -> int:
        """128-bit parts of a vector register: packs and unpacks work within each."""
        return self.vector_bits // 128

    @property
    def shifts_lanes(self) -> bool:
        """Whether an instruction shifts every lane by its own amount; SSE has none."""
        return self.arch != "x86_64" or "avx2" in self.features

    @property
    def prefetches(self) -> bool:
        """Whether kernels ask for weights before they need them."""
        return self.arch == "x86_64"

    @property
    def triple(self) -> str:
        """LLVM's target triple."""
        return TRIPLES[self.os].format(arch=_APPLE_ARCH.get(self.arch, self.arch) if self.os == "macos" else self.arch)

    @property
    def llvm_features(self) -> str:
        """The attribute string: required features, none that `cpu` would add, whole vectors where the default would be half, and dot products
        of words that stay one instruction."""
        tuning = (*(("-prefer-256-bit",) if self.vector_bits == 512 else ()), *(("+fast-dpwssd",) if self.dot == "vpdpbusd" else ()))
        absent = (f"-{f}" for f in _EXTRAS if self.arch == "x86_64" and f not in self.features)
        return ",".join((*(f"+{f}" for f in self.features), *absent, *tuning))

    @property
    def symbol_prefix(self) -> str:
        """What the object format puts before a C name."""
        return "_" if self.os == "macos" else ""

    def for_os(self, os: str) -> Target:
        """The same instruction set on `os`: linux, macos, windows or android."""
        if os not in TRIPLES:
            raise UsageError(f"unknown operating system {os!r}; expected one of {', '.join(TRIPLES)}")
        return replace(self, os=os)

    def generic(self) -> Target:
        """The row by meaning: the same bits on any CPU, for tests."""
        return replace(self, by_meaning=True)

    def narrowed(self, vector_bits: int) -> Target:
        """The same instruction set used with narrower vectors."""
        return replace(self, vector_bits=vector_bits)

    @property
    def runs_here(self) -> bool:
        """Whether this CPU executes the code."""
        return self.by_meaning or (self.arch == host_arch() and host_features().issuperset(self.features))

    def machine(self, jit: bool = False) -> Any:
        """LLVM's target machine: position-independent, small code model; this CPU's own where `by_meaning`."""
        initialize()
        if self.by_meaning:
            return llvm.Target.from_default_triple().create_target_machine(opt=1, reloc="pic", codemodel="jitdefault" if jit else "small", jit=jit)
        return llvm.Target.from_triple(self.triple).create_target_machine(
            self.cpu, self.llvm_features, opt=2, reloc="pic", codemodel="jitdefault" if jit else "small", jit=jit
        )


TRIPLES = {
    "linux": "{arch}-unknown-linux-gnu",
    "macos": "{arch}-apple-macosx11.0.0",
    "windows": "{arch}-pc-windows-msvc",
    "android": "{arch}-unknown-linux-android21",
}
_APPLE_ARCH = {"aarch64": "arm64"}

_SSE = ("sse3", "ssse3", "sse4.1")
_AVX2 = (*_SSE, "sse4.2", "avx", "avx2")
_AVX512 = (*_AVX2, "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512dq")
_EXTRAS = ("cx16", "sahf", "popcnt", "crc32", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "xsave", "avx512cd")
"""What LLVM's x86-64-v3 and -v4, whose schedules are used, have beyond the features of the rows."""

TARGETS: dict[str, Target] = {
    t.name: t
    for t in (
        Target("x86-64", "x86_64", "x86-64", _SSE, 128, 16, "maddubs", 128),
        Target("x86-64-avx2", "x86_64", "x86-64-v3", _AVX2, 256, 16, "maddubs", 128),
        Target("x86-64-avxvnni", "x86_64", "x86-64-v3", (*_AVX2, "avxvnni"), 256, 16, "vpdpbusd", 128),
        Target("x86-64-avx512vnni", "x86_64", "x86-64-v4", (*_AVX512, "avx512vnni"), 512, 32, "vpdpbusd", 128),
        Target("arm64", "aarch64", "generic", ("neon",), 128, 32, "smull", dense=("lengthwise",)),
        Target("arm64-dotprod", "aarch64", "generic", ("neon", "dotprod"), 128, 32, "sdot"),
        Target("arm64-i8mm", "aarch64", "generic", ("neon", "dotprod", "i8mm"), 128, 32, "sdot", dense=("smmla",)),
    )
}
"""Best last within an architecture."""

_ARM_CORES = {"apple-m1": ("dotprod",), "apple-a14": ("dotprod",)}
"""Features of hosts whose operating system does not tell; later Apple cores have i8mm too."""


@cache
def initialize() -> None:
    """Prepare LLVM's code generators, once."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    llvm.initialize_native_asmparser()


def host_arch() -> str:
    """Architecture of this process: x86_64 or aarch64 (as LLVM spells it)."""
    arch = str(llvm.get_process_triple()).partition("-")[0]
    return {"arm64": "aarch64", "amd64": "x86_64"}.get(arch, arch)


@cache
def host_features() -> frozenset[str]:
    """LLVM feature names of this CPU."""
    found = {name for name, present in llvm.get_host_cpu_features().items() if present}
    if host_arch() == "aarch64":
        name = llvm.get_host_cpu_name()
        found |= {"neon", *_ARM_CORES.get(name, ("dotprod", "i8mm") if name.startswith("apple-") else ())}
    return frozenset(found)


def host_target() -> Target:
    """The best row that this CPU runs."""
    here = [t for t in TARGETS.values() if t.runs_here]
    if not here:
        raise UsageError(f"no target fits this machine ({llvm.get_process_triple()}); expected one of {', '.join(TARGETS)}")
    return here[-1].for_os(_host_os())


def _host_os() -> str:
    triple = str(llvm.get_process_triple())
    return next((os for os, mark in (("windows", "windows"), ("macos", "apple"), ("android", "android")) if mark in triple), "linux")


def find_target(name: str) -> Target:
    """The row called `name`, or "host", optionally with an operating system: "arm64-dotprod@macos"."""
    row, _, os = name.partition("@")
    if row != "host" and row not in TARGETS:
        expected = f"host or one of {', '.join(TARGETS)}, optionally followed by @ and one of {', '.join(TRIPLES)}"
        raise UsageError(f"unknown target {row!r}; expected {expected}")
    target = host_target() if row == "host" else TARGETS[row]
    return target.for_os(os) if os else target
