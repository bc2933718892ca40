"""One network on several targets: accuracy, latency of a stated kind, sizes, and whether every program gave the same bits.

    on a device   the first few samples are run over ssh, where it is of the target's kind, and the time measured there
    natively      every sample is run, and the time measured; programs and peers take turns
    emulated      the first few samples are run (unicorn, qemu-user), instructions of arm64 are counted and their cycles estimated; no time is given
    by meaning    the kernels of a CPU that neither this machine nor an emulator has, with generic code for each instruction
    not run       objects of other systems

Programs that give the same bits have the same accuracy, so that what was run in part takes over the figure of one that was run in whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from math import sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import QCompilerError, UsageError
from qcompiler.runtime import MachineError, RuntimeFailure
from qcompiler.runtime.bench import compare

from .data import Dataset
from .evaluate import classes

if TYPE_CHECKING:
    from qcompiler.api import Program, QuantizedModel

Array = NDArray[Any]
Feeds = Mapping[str, Array]
Call = Callable[[Feeds], Mapping[str, Array]]
Z95 = 1.959964
MEASURED, REMOTE, COUNTED = "measured", "remote", "counted"
NATIVELY = "natively"
_INSTRUCTION = 4  # bytes, on arm64
FLOAT = "onnxruntime float"


@dataclass(frozen=True)
class Row:
    """The figures of one target. None: not known."""

    target: str
    compiled: bool
    ran: str
    samples: int
    metric: str = "top1"
    value: float | None = None
    low: float | None = None
    high: float | None = None
    """Wilson's interval of 95 percent."""
    disagreement: float | None = None
    """Share of samples to which another class was named than by the float network."""
    margin: float | None = None
    """How far, in the float network's scores, its own class was before ours on these samples, on the average."""
    latency_ms: float | None = None
    latency_kind: str | None = None
    instructions: int | None = None
    cycles: float | None = None
    core: str | None = None
    """The core that `cycles` is an estimate for (`qcompiler.backends.cycles`: within 25 percent on layers of multiplications)."""
    code_bytes: int | None = None
    weight_bytes: int | None = None
    arena_bytes: int | None = None
    macs: int | None = None
    percent_of_peak: float | None = None
    same_bits: bool | None = None

    def figures(self, real: Row) -> dict[str, float | None]:
        """By the names that requirements use."""
        sizes = {"code": self.code_bytes, "weights": self.weight_bytes, "arena": self.arena_bytes, "macs": self.macs}
        accuracy = {"accuracy": self.value, "accuracy_low": self.low, "float_accuracy": real.value, "disagreement": self.disagreement}
        speed = {
            "latency": self.latency_ms,
            "float_latency": real.latency_ms,
            "instructions": self.instructions,
            "cycles": self.cycles,
            "peak": self.percent_of_peak,
        }
        return {**accuracy, **speed, **sizes, "same_bits": self.same_bits}

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


NAMES = set(Row("", True, "", 0).figures(Row("", False, "", 0)))


@dataclass(frozen=True)
class Answers:
    """What was answered to the samples: the scores of the first output, and a digest of all outputs of each sample."""

    scores: tuple[Array, ...]
    digests: tuple[bytes, ...]

    @property
    def classes(self) -> NDArray[np.int64]:
        """The class named of each sample, or of each position."""
        return np.concatenate([classes(_rows(s)) for s in self.scores])

    def agrees(self, other: Answers) -> bool:
        """The same bits, as far as both were asked."""
        return all(a == b for a, b in zip(self.digests, other.digests))


def _rows(scores: Array) -> Array:
    """Classes along the last axis, one row to each position; integers are classes already."""
    if scores.dtype.kind in "iu":
        return scores.reshape(-1, 1)
    return scores.reshape(-1, scores.shape[-1]) if scores.ndim > 1 else scores.reshape(1, -1)


def asked(call: Call, samples: Sequence[Feeds], output: str) -> Answers:
    """The answers of a program to `samples`."""
    scores, digests = list[Array](), list[bytes]()
    for feeds in samples:
        found = call(feeds)
        scores.append(np.array(found[output]))
        digests.append(sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in found.values())).digest())
    return Answers(tuple(scores), tuple(digests))


def wilson(right: int, count: int) -> tuple[float, float]:
    """Wilson's score interval (1927): the accuracies p for which `right` of `count` is within z deviations of what p lets expect."""
    p, z2 = right / count, Z95**2
    middle, spread = p + z2 / (2 * count), Z95 * sqrt(p * (1 - p) / count + z2 / (4 * count**2))
    low, high = ((middle + sign * spread) / (1 + z2 / count) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)


@dataclass(frozen=True)
class Samples:
    """The samples that are asked, and the right answers where they are known."""

    feeds: tuple[Feeds, ...]
    labels: NDArray[np.int64] | None

    @classmethod
    def of(cls, data: Dataset) -> Samples:
        """All of a data set."""
        batches = list(data.batches())
        labels = [b.labels for b in batches if b.labels is not None]
        return cls(tuple(b.feeds for b in batches), np.concatenate([np.asarray(x).reshape(-1) for x in labels]) if labels else None)

    def judged(self, row: Row, answers: Answers, real: Answers) -> Row:
        """`row` with accuracy, its interval, and how it differs from the float network."""
        ours, theirs = answers.classes, real.classes
        kept = np.ones(len(ours), bool) if self.labels is None else self.labels >= 0
        if len(kept) != len(ours):
            raise UsageError(f"found {len(kept)} labels for {len(ours)} answers: expected one to each sample, or to each position")
        differ = kept & (ours != theirs)
        row = replace(row, disagreement=float(differ.sum() / max(kept.sum(), 1)), margin=_margin(real, ours, differ))
        if self.labels is None or not kept.any():
            return row
        right, count = int((ours[kept] == self.labels[kept]).sum()), int(kept.sum())
        low, high = wilson(right, count)
        return replace(row, value=right / count, low=low, high=high)


def _margin(real: Answers, ours: NDArray[np.int64], differ: NDArray[np.bool_]) -> float | None:
    if not differ.any() or real.scores[0].dtype.kind in "iu":
        return None
    scores = np.concatenate([_rows(s) for s in real.scores])[differ]
    return float(np.mean(scores.max(1) - scores[np.arange(len(scores)), ours[differ]]))


@dataclass(frozen=True)
class Plan:
    """How much is run: samples under emulation, seconds to measure each, threads of a call."""

    emulated: int = 4
    seconds: float = 1.0
    threads: int = 1
    device: str | None = None


@dataclass(frozen=True)
class Counted:
    """What one inference executes: instructions, and an estimate of the cycles that they take on a named core."""

    instructions: int
    cycles: float | None = None
    core: str | None = None


@dataclass(frozen=True)
class Ran:
    """How a program was run, what it answered, what one sample costs, milliseconds on the device."""

    how: str
    answers: Answers | None = None
    counted: Counted | None = None
    remote_ms: float | None = None


def compiled_rows(
    model: QuantizedModel, programs: Mapping[str, Program], samples: Samples, real: Answers, plan: Plan
) -> tuple[list[Row], dict[str, Callable[[], object]]]:
    """A row for each program, without its time, and calls to measure of those that run here."""
    few = samples.feeds[: plan.emulated]
    output = model.graphs.integer_graph.output_names[0]
    truth = asked(lambda f: _reference(model, f), few, output)
    found = {name: _run(program, samples, few, output, plan) for name, program in programs.items()}
    known = (ran.answers for ran in found.values() if ran.answers is not None)
    whole = next((a for a in known if len(a.digests) == len(samples.feeds)), None)
    if whole is not None and len(whole.digests) > len(truth.digests) and whole.agrees(truth):
        truth = whole
    rows = list[Row]()
    for name, ran in found.items():
        answers = ran.answers
        same = None if answers is None else answers.agrees(truth)
        row = _described(name, programs[name], ran, same)
        judging = answers if answers is not None and len(answers.digests) == len(samples.feeds) else truth if same else None
        rows.append(samples.judged(row, judging, real) if judging is not None and len(judging.digests) == len(samples.feeds) else row)
    return rows, {name: _timed(programs[name], samples.feeds[0], plan.threads) for name, ran in found.items() if ran.how == NATIVELY}


def _timed(program: Program, feeds: Feeds, threads: int) -> Callable[[], object]:
    program.executable.threads = threads
    return lambda: program.run(feeds)


def _reference(model: QuantizedModel, feeds: Feeds) -> Mapping[str, Array]:
    from qcompiler.api import reference_run

    return reference_run(model.graphs.integer_graph, feeds)


def _run(program: Program, samples: Samples, few: Sequence[Feeds], output: str, plan: Plan) -> Ran:
    if program.elf is None:
        return Ran("not run")
    if plan.device is not None and (ran := _run_on_device(program, few, output, plan.device, plan.seconds)) is not None:
        return ran
    if program.target.runs_here:
        return Ran(NATIVELY, asked(program.run, samples.feeds, output))
    try:
        return Ran("emulated", asked(program.run, few, output), _counted(program, few[0]))
    except MachineError:
        return _run_by_meaning(program, few, output)


def _run_on_device(program: Program, few: Sequence[Feeds], output: str, address: str, seconds: float) -> Ran | None:
    """None where the device is of another kind than the program."""
    from qcompiler.backends.remote import Device, Unfit, remote

    try:
        there, executor = remote(program.interface, program.image, program.target, Device.parse(address))
    except Unfit:
        return None
    try:
        answers = asked(there.run, few, output)
        return Ran(f"on {executor.cpu}", answers, None, executor.latency(lambda: there.run(few[0]), seconds).median)
    finally:
        executor.close()


def _run_by_meaning(program: Program, few: Sequence[Feeds], output: str) -> Ran:
    from qcompiler.api import build

    try:
        generic = build(program.model, program.target.generic(), os="linux")
        return Ran("by meaning", asked(generic.run, few, output))
    except (QCompilerError, RuntimeFailure):  # generic code that this CPU's baseline cannot hold without a library
        return Ran("not run")


def _counted(program: Program, feeds: Feeds) -> Counted | None:
    """What one inference executes, where the emulator can count it; in a fresh one, which counts as it translates."""
    from qcompiler.backends.cycles import analyzer, estimate
    from qcompiler.backends.emulate import UnicornExecutor, emulates
    from qcompiler.runtime import Program as Loaded

    if program.target.arch != "aarch64" or not emulates("aarch64", program.target.features):
        return None
    executor = UnicornExecutor.of_image(program.image.data, program.image.entries, program.image.arch)
    with executor.tracing() as blocks:
        Loaded(program.interface, executor).run(feeds)
    instructions = sum(count * size // _INSTRUCTION for (_, size), count in blocks.items())
    if analyzer() is None:
        return Counted(instructions)
    found = estimate(program.image, blocks, program.target.features)
    return Counted(instructions, found.cycles, found.core)


def _described(name: str, program: Program, ran: Ran, same: bool | None) -> Row:
    interface, code = program.interface, None if program.elf is None else program.image.code_size
    kind = REMOTE if ran.remote_ms is not None else COUNTED if ran.counted is not None else None
    samples = 0 if ran.answers is None else len(ran.answers.digests)
    row = Row(name, True, ran.how, samples, latency_ms=ran.remote_ms, latency_kind=kind, code_bytes=code, same_bits=same)
    if ran.counted is not None:
        row = replace(row, instructions=ran.counted.instructions, cycles=ran.counted.cycles, core=ran.counted.core)
    return replace(row, weight_bytes=interface.weights_size, arena_bytes=interface.arena_size, macs=program.report.macs)


def peer_row(name: str, size: int, samples: Samples, answers: Answers, real: Answers, runtime: str = "onnxruntime") -> Row:
    """A network that another runtime runs."""
    return samples.judged(Row(name, False, f"in {runtime}", len(answers.digests), code_bytes=None, weight_bytes=size), answers, real)


def timed_rows(rows: Sequence[Row], calls: Mapping[str, Callable[[], object]], programs: Mapping[str, Program], plan: Plan) -> list[Row]:
    """`rows` with the median of what was measured, all taking turns, and the percent of this CPU's peak."""
    times = compare(calls, plan.seconds)
    return [
        replace(r, latency_ms=times[r.target].median, latency_kind=MEASURED, percent_of_peak=_percent(r, times, programs, plan))
        if r.target in times
        else r
        for r in rows
    ]


def _percent(row: Row, times: Mapping[str, Any], programs: Mapping[str, Program], plan: Plan) -> float | None:
    from qcompiler.backends.llvm.peak import peak_gops

    if row.target not in programs or row.macs is None or plan.threads != 1:
        return None
    return 100 * 2 * row.macs / (times[row.target].median * 1e6) / peak_gops(programs[row.target].target)
