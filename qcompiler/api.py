"""The Python interface: `compile` a model to a `Program` that runs, explains itself and can be saved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from . import runtime
from .backends import reference
from .backends.certificate import Certificate, certify
from .backends.image import Image, flatten
from .backends.llvm.cache import NO_CACHE, objects
from .backends.llvm.lower import ObjectCode, compile_lengths
from .backends.llvm.target import Target, find_target
from .backends.package import Artifact, write_artifact
from .errors import UsageError
from .frontend.lengths import Shapes, form_names, import_forms
from .ir.graph import Graph
from .ir.serialize import graph_to_bytes
from .latency import layer_latencies
from .passes.calibrate import synthetic_batches
from .passes.index_ranges import out_of_range
from .passes.partition import Step, partition
from .passes.pipeline import Options, Quantized, quantize_lengths
from .passes.precision.auto import Chosen, Progress, quantize_auto
from .passes.precision.costs import Latencies
from .passes.precision.plan import Plan, Precision, plan_of, plan_text
from .passes.precision.search import Goal
from .passes.watch import dump
from .profile import Profile, profile
from .report import Feeds, Report, build_report
from .runtime.artifact import Interface
from .runtime.errors import InputError
from .runtime.program import fits

Array = NDArray[Any]
Model = str | PathLike[str] | onnx.ModelProto
Batches = Iterable[Mapping[str, Array]]

SYNTHETIC_SAMPLES = 16
REPORT_SAMPLES = 2
GRAPH_FILE = "model.graph"
PLAN_FILE = "plan.toml"
DEFAULTS = Options()
AUTO = "auto"


def compile(
    model: Model,
    target: str | Target = "host",
    calibration: Batches | None = None,
    *,
    shapes: Shapes | None = None,
    options: Options = DEFAULTS,
    precision: str | Plan | None = None,
    max_drop: float | None = None,
    max_bytes: int | None = None,
    max_latency: float | None = None,
    labels: str | None = None,
    os: str | None = None,
    name: str = "model",
    cache: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Program:
    """Compile a float ONNX `model` (path or `ModelProto`) for `target`.

    `calibration` yields ``{input name: array}`` with one sample or a leading batch of them; without it, synthetic inputs are
    used, and accuracy is whatever they are worth. `shapes` fixes free dimensions by input name; of a list of shapes for a name, each
    becomes an entry of its own of the one program, and calibration data has the largest. `precision` is a name such as "w4a8" for the bits of
    weights (2 to 8) and of what they multiply (4 to 8), instead of those of `options`; a `Plan` says it layer by layer; "auto" chooses for each
    layer, with the fewest bytes of weights of which `max_drop` points of accuracy are expected to be lost at most (of samples that are held out
    from calibration), or with the least loss in `max_bytes` of weights, or in `max_latency` milliseconds of one thread;
    limits may be combined. `labels` names an array of each calibration batch, besides the inputs, with the right classes of its samples, where
    they are known: "auto" looks at them. `os` chooses the object
    format (None: that of the target), `name` prefixes the C symbols, machine code is kept in the user's `cache` folder,
    and `progress` hears how many calibration samples have been seen.

    Raises UsageError, ModelError, UnsupportedModel or ProofError, all of them QCompilerError.
    """
    limits = (max_drop, max_bytes, max_latency)
    goal = None if limits == (None, None, None) else Goal(*limits)
    row = find_target(target) if isinstance(target, str) else target
    quantized = quantize_model(
        model,
        calibration,
        shapes=shapes,
        options=options,
        precision=precision,
        goal=goal,
        latencies=None if max_latency is None else row,
        labels=labels,
        progress=progress,
    )
    return build(quantized, target, os=os, name=name, cache=cache)


def quantize_model(
    model: Model,
    calibration: Batches | None = None,
    *,
    shapes: Shapes | None = None,
    options: Options = DEFAULTS,
    precision: str | Plan | None = None,
    goal: Goal | None = None,
    latencies: Latencies | Target | None = None,
    labels: str | None = None,
    saved: Path | None = None,
    progress: Callable[[int], None] | None = None,
    phases: Progress | None = None,
) -> QuantizedModel:
    """The part of `compile` that is the same for all targets.

    An automatic choice of precisions can look at `latencies`, a table or the target to find them for, keeps sensitivities in the folder `saved`, so
    that it may be interrupted, and tells `phases` of its steps.
    """
    if goal is not None and precision != AUTO:
        raise UsageError(f"limits of drop, size or latency belong to precision 'auto', found {precision or 'none'}; name it, or leave them out")
    if labels is not None and precision != AUTO:
        raise UsageError(f"labels of calibration samples are for precision 'auto', found {precision or 'none'}; leave them out")
    forms = import_forms(model, shapes)
    if precision == AUTO:
        return _chosen(model, forms, calibration, options, goal, latencies, labels, saved, phases)
    options = _with_precision(options, precision)
    kept = _Kept(calibration if calibration is not None else synthetic_batches(forms[0], SYNTHETIC_SAMPLES))
    source = None if isinstance(model, onnx.ModelProto) else str(Path(model).resolve())
    graphs, *others = quantize_lengths(forms, kept, options, progress, phases)
    return QuantizedModel(graphs, tuple(_first_samples(forms[0], kept.first)), calibration is None, source, tuple(others))


def _with_precision(options: Options, precision: str | Plan | None) -> Options:
    if precision is None or isinstance(precision, Plan):
        return options if precision is None else replace(options, plan=precision)
    bits = Precision.parse(precision)
    return replace(options, weight_bits=bits.weights, activation_bits=bits.activations)


def _missing(goal: Goal | None, calibration: Batches | None) -> str:
    """What an automatic choice lacks, and where it comes from."""
    if calibration is None:
        return "calibration data, to measure what fewer bits cost; give --calib (calibration=)"
    if goal is None:
        return "a greatest drop, size or latency; give max_drop=, max_bytes= or max_latency="
    return "one shape of each input; give a single one, or a plan in a file"


def _chosen(
    model: Model,
    forms: Sequence[Graph],
    calibration: Batches | None,
    options: Options,
    goal: Goal | None,
    latencies: Latencies | Target | None,
    labels: str | None,
    saved: Path | None,
    phases: Progress | None,
) -> QuantizedModel:
    """The network in the precision that is best for `goal`."""
    if goal is None or len(forms) > 1 or calibration is None:
        raise UsageError(f"precision 'auto' needs {_missing(goal, calibration)}")
    kept = _Kept(calibration)

    def measured(made: Mapping[int, Quantized]) -> Latencies:
        assert isinstance(latencies, Target)
        return layer_latencies(made, latencies, next(_first_samples(forms[0], kept.first)))

    table = measured if isinstance(latencies, Target) else latencies
    graphs, choice = quantize_auto(forms[0], kept, options, goal, table, phases, saved, labels)
    source = None if isinstance(model, onnx.ModelProto) else str(Path(model).resolve())
    return QuantizedModel(graphs, tuple(_first_samples(forms[0], kept.first)), False, source, choice=choice)


@dataclass(frozen=True)
class QuantizedModel:
    """A network after quantization, before code: its graphs, a few samples for the report, and whether data was synthetic."""

    graphs: Quantized
    samples: tuple[Feeds, ...]
    synthetic: bool
    source: str | None = None
    """The file of the float network; None where it was a `ModelProto`."""
    others: tuple[Quantized, ...] = ()
    """The same network for further shapes of its inputs, from larger ones to smaller ones; all else is told of the first."""
    choice: Chosen | None = None
    """How the precision of each layer was chosen, where it was."""

    @property
    def integer_graphs(self) -> tuple[Graph, ...]:
        """The integer graph of each form."""
        return tuple(q.integer_graph for q in (self.graphs, *self.others))

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The kernels in execution order."""
        return partition(self.graphs.integer_graph, self.graphs.declined)

    @cached_property
    def report(self) -> Report:
        """What was done, layer by layer; measuring the errors takes a moment."""
        return build_report(self.graphs, self.steps, self.samples, self.source)


def build(model: QuantizedModel, target: str | Target = "host", *, os: str | None = None, name: str = "model", cache: bool = True) -> Program:
    """Generate code for one target from a quantized model."""
    named = find_target(target) if isinstance(target, str) else target
    row = named if os is None else named.for_os(os)
    code = compile_lengths(form_names(model.integer_graphs, name), row, name, objects() if cache else NO_CACHE)
    dump(f"{row.name}-{row.os}.ll", lambda: code.llvm)
    dump(f"{row.name}-{row.os}.s", lambda: code.assembly)
    return Program(model, row, code)


@dataclass(eq=False)
class Program:
    """A compiled network. Only `threads` may be set."""

    model: QuantizedModel
    target: Target
    code: ObjectCode

    @property
    def graph(self) -> Graph:
        """The integer graph, which the code executes and the reference interprets; that of the first form."""
        return self.model.graphs.integer_graph

    @property
    def interface(self) -> Interface:
        """Names, shapes, types of inputs and outputs, and the size of the arena."""
        return self.code.interface

    @property
    def report(self) -> Report:
        """Per layer: bits, scales, bound on the accumulator, error against float, bytes, MACs, what was fused; and why not."""
        return self.model.report

    @cached_property
    def image(self) -> Image:
        """The flat image. UsageError for object formats that have none."""
        if self.elf is None:
            raise UsageError(f"programs for {self.target.os} cannot run here: compile for linux to run or emulate")
        return flatten(self.elf)

    @property
    def elf(self) -> bytes | None:
        """The object where it is ELF."""
        return self.code.object if self.code.object[:4] == b"\x7fELF" else None

    @cached_property
    def certificate(self) -> Certificate:
        """The proof by disassembly that no floating point and no foreign call is reachable from the integer entry."""
        if self.elf is None:
            raise UsageError(f"certificates are made from ELF objects; compile for linux instead of {self.target.os}")
        return certified(self.elf, self.interface)

    @cached_property
    def parallel_certificate(self) -> Certificate:
        """The same of the entry for several threads and of all tasks that it hands out."""
        if self.elf is None:
            raise UsageError(f"certificates are made from ELF objects; compile for linux instead of {self.target.os}")
        return certified(self.elf, self.interface, parallel=True)

    @property
    def threads(self) -> int:
        """How many threads compute one call of `run`; the answers are the same bits. May be set; stays 1 where the program is emulated."""
        return self.executable.threads

    @threads.setter
    def threads(self, count: int) -> None:
        self.executable.threads = count

    @cached_property
    def executable(self) -> runtime.Program:
        """The program as the runtime runs it: natively where this machine can, else emulated."""
        if self.target.runs_here:
            return runtime.Program.of_image(self.interface, self.image.data, self.image.entries)
        from .backends.emulate import emulated

        return emulated(self.interface, self.image, self.target.features)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Float in, float out, integers inside; a larger leading batch is looped over."""
        return self.executable.run(feeds)

    def run_integer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Quantized inputs to quantized outputs."""
        return self.executable.run_integer(feeds)

    def reference(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The same program in numpy: equal to `run`, bit for bit."""
        return reference_run(fitting(self.model.integer_graphs, feeds), feeds)

    def profile(self, feeds: Mapping[str, Array], seconds: float = 1.0) -> Profile:
        """Where the time goes, layer by layer, against this CPU's peak: measured on a build with time stamps. One thread."""
        graph = fitting(self.model.integer_graphs, feeds)
        return profile(graph, self.target, feeds, seconds, self.model.steps if graph is self.graph else None)

    def save(self, folder: str | PathLike[str], share: bool = True) -> None:
        """Write the artifact: object, static library, header, image, shared library where a linker is found, manifest."""
        certificate = None if self.elf is None else {**self.certificate.as_dict(), "parallel": self.parallel_certificate.as_dict()}
        artifact = Artifact(
            self.code.object,
            self.interface,
            self.target,
            None if self.elf is None else self.image,
            report=self.report.as_dict(),
            certificate=certificate,
            extra={GRAPH_FILE: graph_to_bytes(*self.model.integer_graphs), PLAN_FILE: plan_text(plan_of(self.model.graphs.qdq_graph)).encode()},
        )
        write_artifact(Path(folder), artifact, share=share)


def certified(elf: bytes, interface: Interface, parallel: bool = False) -> Certificate:
    """The certificate of the integer entries of every form."""
    entry, *others = (f.entry(integer=True, parallel=parallel) for f in interface.forms)
    return certify(elf, entry, callback=parallel, others=others)


def fitting(graphs: Sequence[Graph], feeds: Mapping[str, Array]) -> Graph:
    """The form whose shapes, or multiples of them in front, `feeds` have; where there is none the first, which will refuse them."""
    found = {name: np.shape(x) for name, x in feeds.items()}
    return next((g for g in graphs if all(v.name in found and fits(v.shape, found[v.name]) for v in g.inputs)), graphs[0])


def reference_run(graph: Graph, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """`reference.run` with a leading batch looped over, as programs do. InputError where they refuse their inputs."""
    for v in graph.inputs:
        if problem := out_of_range(graph, v, np.asarray(feeds[v.name])):
            raise InputError(f"input '{v.name}': {problem}")
    rows = [reference.run(graph, f) for f in split_batch(graph, feeds)]
    return {name: np.concatenate([r[name] for r in rows]) if rows[0][name].ndim else rows[0][name] for name in graph.output_names}


def split_batch(graph: Graph, feeds: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
    """`feeds` cut along the leading axis into pieces of the shapes that `graph` declares."""
    sizes = {v.name: v.shape[0] if v.shape else 1 for v in graph.inputs}
    count = min((len(feeds[name]) // size if np.ndim(feeds[name]) else 1 for name, size in sizes.items()), default=1)
    for i in range(count):
        yield {name: feeds[name][i * size : (i + 1) * size] if np.ndim(feeds[name]) else feeds[name] for name, size in sizes.items()}


class _Kept:
    """Batches that remember the first of them, so that the report can look at it after calibration has consumed the rest."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self.first: list[Mapping[str, Array]] = []

    def __iter__(self) -> Iterator[Mapping[str, Array]]:
        for batch in self._batches:
            if len(self.first) < REPORT_SAMPLES:
                self.first.append(batch)
            yield batch


def _first_samples(graph: Graph, batches: Iterable[Mapping[str, Array]]) -> Iterator[dict[str, Array]]:
    converted = ({v.name: np.asarray(b[v.name], v.type.dtype.numpy) for v in graph.inputs} for b in batches)
    return islice((s for batch in converted for s in split_batch(graph, batch)), REPORT_SAMPLES)
