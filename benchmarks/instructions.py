"""Instructions executed per inference on arm64, divided by multiply-accumulates / 16: `python -m benchmarks.instructions [names or .onnx files]`.

One `sdot` of 16 bytes does 16 multiply-accumulates, so 1 is the least that the dot-product instructions allow, and plain NEON, which needs
two multiplications for as many and a widening addition for each chain of two, ends at 2.5; one `smmla` does 32, so 0.5 is the least there.
Counted in an emulated CPU (unicorn). It has no `smmla`: to count, each is replaced by an `sdot` of the same registers, as no branch of a
program depends on what was multiplied.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import click
import numpy as np

from benchmarks.zoo import NETWORKS
from qcompiler.api import QuantizedModel, build, quantize_model
from qcompiler.backends.emulate import UnicornExecutor
from qcompiler.backends.llvm.target import TARGETS
from qcompiler.passes.pipeline import Options

SAMPLES = 16
MATRIX, DOT, OPERANDS = 0x4E80A400, 0x4E809400, 0x001F03FF
"""Encodings of smmla and sdot, and where both have their registers (Arm ARM, C7.2)."""
COUNTED = {"neon", "dotprod", "i8mm"}


@dataclass(frozen=True)
class Count:
    """Of one network on one target."""

    target: str
    instructions: int
    macs: int
    code_bytes: int

    @property
    def ratio(self) -> float:
        """Instructions per 16 multiply-accumulates."""
        return self.instructions / (self.macs / 16)


def quantized(name: str, bits: int) -> QuantizedModel:
    """A network of the zoo with its data, or any file with synthetic inputs."""
    options = Options(weight_bits=bits)
    if name not in NETWORKS:
        return quantize_model(Path(name), options=options)
    net = NETWORKS[name]
    source = onnx_input(net.path)
    return quantize_model(net.path, ({source: x} for x, _ in islice(net.batches("calib"), SAMPLES)), options=options)


def onnx_input(path: Path) -> str:
    """Name of the first input."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    constants = {i.name for i in model.graph.initializer}
    return next(i.name for i in model.graph.input if i.name not in constants)


def countable(code: bytes) -> bytes:
    """The same with `sdot` for `smmla`."""
    words = np.frombuffer(code, np.uint32, len(code) // 4)
    swapped = np.where(words & ~np.uint32(OPERANDS) == MATRIX, words & OPERANDS | DOT, words)
    return bytes(swapped.astype(np.uint32).tobytes() + code[4 * len(words) :])


def counts(model: QuantizedModel) -> Iterator[Count]:
    """For every arm64 row."""
    for target in (t for t in TARGETS.values() if t.arch == "aarch64" and COUNTED.issuperset(t.features)):
        program = build(model, target)
        image = program.image
        code = countable(bytes(image.data[: image.code_size])) + bytes(image.data[image.code_size :])
        executor = UnicornExecutor.of_image(code, image.entries, image.arch)
        interface = program.interface
        inputs = [np.zeros(t.shape, t.storage) for t in interface.inputs]
        outputs = [np.zeros(t.shape, t.storage) for t in interface.outputs]
        with executor.counting():
            executor.call(interface.entry(integer=True), inputs, outputs, np.zeros(interface.arena_size, np.uint8))
        yield Count(target.name, executor.instructions, program.report.macs, program.image.code_size)


@click.command()
@click.argument("names", nargs=-1)
@click.option("--bits", default=8, help="Bits of weights.")
def main(names: tuple[str, ...], bits: int) -> None:
    """Print the table."""
    click.echo("| network | target | instructions | per 16 MACs | code KB |\n|---|---|---|---|---|")
    for name in names or NETWORKS:
        for c in counts(quantized(name, bits)):
            click.echo(f"| {Path(name).stem} | {c.target} | {c.instructions:,} | {c.ratio:.2f} | {c.code_bytes / 1024:.0f} |")


if __name__ == "__main__":
    main()
