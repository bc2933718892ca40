"""`qcompile verify`: is the artifact whole, integer-only, free of overflow, and equal to the reference, bit for bit?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import QCompilerError
from qcompiler.runtime import ArtifactError, MachineError, Manifest, RuntimeFailure, damaged_files

from .artifact import inputs_for, open_graphs, open_manifest, open_program
from .data import Batch, Dataset, first
from .images import Preprocessing
from .options import data_option, image_options, json_option, read_data
from .show import progress, show_json, show_table

if TYPE_CHECKING:
    from qcompiler.ir.graph import Graph

Array = NDArray[Any]
INVENTED_SAMPLES = 4


@dataclass(frozen=True)
class Check:
    """The answer to one question. `passed` None: it cannot be asked of this artifact."""

    question: str
    passed: bool | None
    detail: str


@click.command("verify")
@click.argument("artifact", metavar="ARTIFACT")
@data_option("--data", "inputs to run [default: a few random ones]")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="use only the first N samples")
@image_options
@json_option
def command(artifact: str, data: str | None, limit: int | None, how: Preprocessing, as_json: bool) -> int:
    """Bit-exact? integer-only? whole?"""
    manifest = open_manifest(artifact)
    inputs = inputs_for(manifest.interface, data)
    samples = invented(artifact) if data is None else read_data(data, inputs, how)
    checks = list(all_checks(artifact, manifest, first(samples, inputs, limit), as_json))
    passed = all(c.passed is not False for c in checks)
    if as_json:
        show_json({"artifact": artifact, "passed": passed, "checks": [asdict(c) for c in checks]})
    else:
        words = {True: "yes", False: "NO", None: "-"}
        show_table(f"{artifact}, {manifest.target.name}", ["", "", ""], [(c.question, words[c.passed], c.detail) for c in checks])
    return int(not passed)


def all_checks(artifact: str, manifest: Manifest, samples: Dataset, quiet: bool) -> Iterator[Check]:
    """The checks in order; a damaged artifact is not run."""
    whole = check_files(artifact)
    yield whole
    if not whole.passed:
        return
    yield asked("integer-only", lambda: check_certificate(artifact, manifest))
    yield asked("no overflow", lambda: check_ranges(artifact))
    yield asked("bit-exact", lambda: check_bits(artifact, manifest, samples, quiet))


def asked(question: str, ask: Callable[[], Check]) -> Check:
    """The answer, or what kept it from being found."""
    try:
        return ask()
    except (QCompilerError, RuntimeFailure) as problem:
        if problem.exit_code == 2:
            raise
        return Check(question, False, str(problem))


def check_files(artifact: str) -> Check:
    """Digests of all files."""
    wrong = damaged_files(artifact)
    count = len(open_manifest(artifact).files)
    told = "; ".join(f"{name}: {what}" for name, what in wrong.items())
    return Check("whole", not wrong, told or f"{count} files have the digests of the manifest")


def check_certificate(artifact: str, manifest: Manifest) -> Check:
    """The object is disassembled again."""
    from qcompiler.api import certified
    from qcompiler.backends.package import object_names

    obj = (Path(artifact) / object_names(manifest.target.os)[0]).read_bytes()
    if obj[:4] != b"\x7fELF":
        return Check("integer-only", None, "only ELF objects can be certified: compile for linux or android")
    certificate = certified(obj, manifest.interface)
    parallel = [certified(obj, manifest.interface, parallel=True)] if manifest.interface.parallel else []
    if findings := [f for c in (certificate, *parallel) for f in c.findings]:
        return Check("integer-only", False, "; ".join(map(str, findings[:3])))
    counted = f"{certificate.instructions:,} instructions in {len(certificate.functions)} functions, {certificate.stack_bytes} bytes of stack"
    return Check("integer-only", True, f"nothing reachable from {certificate.entry} is floating point or leaves the object: {counted}")


def check_ranges(artifact: str) -> Check:
    """The overflow proof is made again from the constants."""
    from qcompiler.passes.prove_ranges import prove_ranges

    bounds = {v: bound for graph in open_graphs(artifact) for v, bound in prove_ranges(graph).items()}
    worst = min(bounds.items(), key=lambda item: item[1].headroom, default=None)
    if worst is None:
        return Check("no overflow", True, "there are no accumulators")
    value, bound = worst
    return Check("no overflow", True, f"{len(bounds)} accumulators are bounded; the least headroom is {bound.headroom:.1f} bits, at {value.name}")


def check_bits(artifact: str, manifest: Manifest, samples: Dataset, quiet: bool) -> Check:
    """Program against reference, every output of every sample."""
    from qcompiler.api import fitting, reference_run

    try:
        program = open_program(artifact)
    except (ArtifactError, MachineError) as problem:
        return Check("bit-exact", None, str(problem))
    graphs, count = open_graphs(artifact), 0
    with progress("comparing", samples.count, quiet) as advance:
        for count, batch in enumerate(samples.batches(), 1):
            graph = fitting(graphs, batch.feeds)
            found, expected = program.run(batch.feeds), reference_run(graph, batch.feeds)
            wrong = [name for name in expected if not identical(found[name], expected[name])]
            if wrong:
                return Check("bit-exact", False, mismatch(graph, manifest, batch, count, wrong[0], found[wrong[0]], expected[wrong[0]]))
            advance(count)
    return Check("bit-exact", True, f"{len(graphs[0].outputs)} outputs of {count} samples from {samples.source} are those of the reference")


def identical(a: Array, b: Array) -> bool:
    """The same bits."""
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def mismatch(graph: Graph, manifest: Manifest, batch: Batch, sample: int, name: str, found: Array, expected: Array) -> str:
    """Where program and reference part: the output, and the first value on the way to it that differs."""
    from .trace import first_difference

    place = tuple(int(i) for i in np.argwhere(found != expected)[0]) if found.shape == expected.shape and (found != expected).any() else ()
    told = f"sample {sample}, output '{name}'{list(place)}: expected {expected[place]}, found {found[place]}"
    origin = first_difference(graph, manifest, batch.feeds)
    return f"{told}; " + (f"the first value that differs is {origin}" if origin else "compiled apart, no value differs: compile the model again")


def invented(artifact: str) -> Dataset:
    """A few random samples."""
    from qcompiler.passes.calibrate import synthetic_batches

    graphs = open_graphs(artifact)

    def read() -> Iterator[Batch]:
        return (Batch(dict(f)) for graph in graphs for f in synthetic_batches(graph, INVENTED_SAMPLES))

    return Dataset("random numbers", read, INVENTED_SAMPLES * len(graphs))
