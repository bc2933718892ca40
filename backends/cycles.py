"""Cycles of a program on a named core, estimated: what LLVM's scheduling model says of every basic block, times how often it is executed.

    cycles = sum over blocks b of executions(b) * cycles(b)

Executions are counted in an emulated CPU (unicorn); cycles(b) are those of one round when the block is repeated for ever, as LLVM's machine
code analyzer simulates it (llvm-mca: dispatch, out-of-order issue to the core's ports, latencies, register renaming). What is left out:
caches and memory (every load is a hit in the first level), mispredicted branches, the overlap of neighbouring blocks, and the core's clock.
benchmarks/cycles.py compares with measured time.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from shutil import which

from qcompiler.runtime.errors import MachineError

from .disassemble import Instruction, disassemble
from .image import Image

CORES = {"aarch64": "neoverse-n1", "x86_64": "znver4"}
"""Default cores. LLVM schedules Cortex-A76 with the older model of Cortex-A57; Neoverse N1 is the same core and has a model of its own."""
TOOLS = ("llvm-mca", *(f"llvm-mca-{version}" for version in range(25, 16, -1)))
UNCERTAINTY = 0.25
"""What the estimate of a layer of multiplications may be off, relative to it (docs/benchmarks.md)."""
_ROUNDS = 100
_TRIPLES = {"aarch64": "aarch64-linux-gnu", "x86_64": "x86_64-linux-gnu"}
_CALL = re.compile(r"^(call|callq|bl|blr|ret|retq)\b")
_VERSION = re.compile(r"LLVM version (\d+)")

Blocks = Mapping[tuple[int, int], int]
"""(offset in the image, bytes) of a basic block -> how often it was executed."""


@dataclass(frozen=True)
class Estimate:
    """Cycles of one call on `core`; `modelled` is the share of the executed instructions that the model knows."""

    core: str
    cycles: float
    modelled: float


def analyzer() -> str | None:
    """The newest llvm-mca (17 or later) that is installed."""
    found = (path for name in TOOLS if (path := which(name)) is not None)
    return next((path for path in found if _version(path) >= 17), None)


def _version(path: str) -> int:
    text = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    match = _VERSION.search(text)
    return 0 if match is None else int(match.group(1))


def estimate(image: Image, blocks: Blocks, features: Sequence[str], core: str | None = None) -> Estimate:
    """Cycles of the executed `blocks` of `image`; MachineError without llvm-mca or where it does not know the core."""
    tool, core = analyzer(), core or CORES[image.arch]
    if tool is None:
        raise MachineError("estimating cycles needs llvm-mca of LLVM 17 or later, which is not installed; on Debian: apt install llvm-19")
    code = {place: tuple(_instructions(image, place)) for place in blocks}
    cycles = _analyzed(tool, image.arch, core, features, code)
    executed = {place: count * len(code[place]) for place, count in blocks.items()}
    known = sum(n for place, n in executed.items() if place in cycles)
    total = sum(count * cycles.get(place, 0.0) for place, count in blocks.items())
    return Estimate(core, total, known / max(1, sum(executed.values())))


def _instructions(image: Image, place: tuple[int, int]) -> Iterator[Instruction]:
    start, size = place
    yield from disassemble(image.arch, bytes(image.data[start : start + size]), start)


def _analyzed(
    tool: str, arch: str, core: str, features: Sequence[str], code: Mapping[tuple[int, int], Sequence[Instruction]]
) -> dict[tuple[int, int], float]:
    """Cycles of one round of each block that has more than calls and returns."""
    texts = {place: [str(i) for i in block if not _CALL.match(i.mnemonic)] for place, block in code.items()}
    places = [place for place, lines in texts.items() if lines]
    source = ["\t.intel_syntax noprefix"] if arch == "x86_64" else []
    for i, place in enumerate(places):
        source += [f"# LLVM-MCA-BEGIN b{i}", *texts[place], f"# LLVM-MCA-END b{i}"]
    views = ["-resource-pressure=false", "-instruction-info=false"]
    options = [
        *views,
        f"-mtriple={_TRIPLES[arch]}",
        f"-mcpu={core}",
        f"-mattr={','.join('+' + f for f in features)}",
        f"-iterations={_ROUNDS}",
        "-json",
    ]
    tolerant = ["--skip-unsupported-instructions=any"] if _version(tool) >= 19 else []
    done = subprocess.run([tool, *options, *tolerant], input="\n".join(source) + "\n", capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise MachineError(f"llvm-mca failed for core {core!r}: {done.stderr.strip().splitlines()[:1]}")
    regions = json.loads(done.stdout)["CodeRegions"]
    return {places[int(r["Name"][1:])]: r["SummaryView"]["TotalCycles"] / _ROUNDS for r in regions}
