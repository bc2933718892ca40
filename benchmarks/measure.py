"""What the benchmarks share: sessions of onnxruntime, programs for every target, exactness, precisions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from qcompiler.api import Program, QuantizedModel, build
from qcompiler.backends.llvm.target import find_target, host_arch
from qcompiler.passes.pipeline import Options
from qcompiler.passes.precision.plan import Precision

TARGETS = ("host", "x86-64", "x86-64-avx2", "x86-64-avx512vnni", "arm64", "arm64-dotprod")
CERTIFIED = ("x86-64-avx2", "x86-64-avx512vnni", "arm64-dotprod")
Array = NDArray[Any]
Feeds = Mapping[str, Array]
Runner = Callable[[Feeds], Array]
"""From one sample to the network's first output."""


def session(model: bytes | str, threads: int = 1) -> ort.InferenceSession:
    """An onnxruntime session."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def of_session(s: ort.InferenceSession) -> Runner:
    """Runs a session."""
    return lambda feeds: np.asarray(s.run(None, dict(feeds))[0])


def of_program(program: Program) -> Runner:
    """Runs a compiled program."""
    return lambda feeds: next(iter(program.run(feeds).values()))


def by_meaning(model: QuantizedModel, target: str) -> Program:
    """The program for `target`, by meaning where it is for this architecture but not for this CPU."""
    row = find_target(target)
    return build(model, row.generic() if row.arch == host_arch() and not row.runs_here else row)


def exactness(program: Program, references: Sequence[Feeds], inputs: Sequence[Feeds]) -> str:
    """'20/20' where every output of every input equals the reference's."""
    pairs = ((ref, program.run(x)) for ref, x in zip(references, inputs))
    equal = sum(all(np.array_equal(out[k], ref[k]) for k in ref) for ref, out in pairs)
    return f"{equal}/{len(inputs)}"


def all_equal(exact: Mapping[str, str]) -> bool:
    """Whether every target's count is full."""
    return all(len(set(count.split("/"))) == 1 for count in exact.values())


def options_for(precision: str) -> Options:
    """The compiler's options for 'w4a8': 4 bits of weights, 8 of activations."""
    bits = Precision.parse(precision)
    return replace(Options(), weight_bits=bits.weights, activation_bits=bits.activations)
