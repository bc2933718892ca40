"""Ours against the fastest of onnxruntime and OpenVINO, float and int8: `python -m benchmarks.compare [models] --threads 1 --threads 2`.

Every runtime is a child process, pinned to the same cores (1 thread: the last one), and they take turns of some ten milliseconds, so that
a busy neighbour or another clock rate strikes all alike. A turn's figure is its median; ratios are taken turn by turn, and their
median is reported. Where other work shares the machine, `--clock cpu` counts the time that each process spends on a core instead (one
thread only): waiting for a core would otherwise weigh on long calls more than on short ones. The artifact is compiled here
for this machine from the calibration inputs that the peers get too.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.models import NAMES, Case, case
from qcompiler.api import compile as compile_model
from qcompiler.backends.llvm.peak import peak_gops
from qcompiler.backends.llvm.target import host_target
from qcompiler.runtime.cpu import cpu_name

HERE = Path(__file__).resolve().parents[1]
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "qcompiler" / "peers"
OURS = "ours"
PEERS = ("ORT float", "ORT int8", "OpenVINO float", "OpenVINO int8")
PAUSE = 0.004
"""Seconds between turns: thread pools stop spinning."""


@dataclass(frozen=True)
class Figure:
    """Milliseconds of one runtime: median of its turns, 10th and 90th percentile of all calls, and the best call."""

    median: float
    low: float
    high: float
    best: float
    about: str


@dataclass(frozen=True)
class Row:
    """One model with so many threads. `ratio` is the median over turns of a peer's time divided by ours."""

    model: str
    threads: int
    figures: dict[str, Figure]
    ratio: dict[str, float]

    @property
    def fastest(self) -> str:
        """The best peer."""
        return min(self.ratio, key=lambda name: self.ratio[name])

    @property
    def gain(self) -> float:
        """Times faster than the best peer."""
        return self.ratio[self.fastest]


@dataclass(frozen=True)
class Turns:
    """How many turns of each runtime, how long each is, and what clock counts."""

    rounds: int
    milliseconds: float
    clock: str


class Worker:
    """A runtime in its process."""

    def __init__(self, process: subprocess.Popen[str], order: Mapping[str, Any]) -> None:
        self.process = process
        self.about = str(self.ask(order)["ready"])

    def ask(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """Send one line, read one line."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the runtime {order.get('engine', '')} ended; see its message above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def turn(self, milliseconds: float, clock: str) -> list[float]:
        """Milliseconds of the calls of one turn."""
        return [t / 1e6 for t in self.ask({"milliseconds": milliseconds, "clock": clock})["nanoseconds"]]


@contextmanager
def worker(python: str, order: Mapping[str, Any]) -> Iterator[Worker]:
    """A worker, ended afterwards."""
    command = [python, str(HERE / "benchmarks" / "worker.py")]
    environment = {**os.environ, "PYTHONPATH": str(HERE)} if order["engine"] == OURS else None
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            yield Worker(process, order)
        finally:
            process.stdin.close() if process.stdin else None
            process.wait()


# --- what is measured ------------------------------------------------------------------------------------------------


def engines(c: Case, python: str, samples: int, reuse: bool) -> dict[str, tuple[str, str, Path]]:
    """Name -> (interpreter, engine, file); peers whose packages are missing are left out with a message."""
    folder = CACHE / digest(c, samples)
    data, artifact = stored(c, folder), folder / "ours"
    found = {OURS: (sys.executable, OURS, compiled(c, artifact, reuse)), "ORT float": (sys.executable, "ort", c.path)}
    found["ORT int8"] = (sys.executable, "ort", quantized(sys.executable, "ort", c.path, data, folder / "ort.onnx"))
    if subprocess.run([python, "-c", "import openvino, nncf"], capture_output=True).returncode:
        click.echo(f"{python} has no openvino and nncf: pip install 'qcompiler[peers]'", err=True)
        return found
    found["OpenVINO float"] = (python, "openvino", c.path)
    found["OpenVINO int8"] = (python, "openvino", quantized(python, "openvino", c.path, data, folder / "openvino.xml"))
    return found


def digest(c: Case, samples: int) -> str:
    """A name for what the model and its data make."""
    content = hashlib.sha256(c.path.read_bytes() + str(samples).encode())
    return f"{c.name}-{content.hexdigest()[:12]}"


def stored(c: Case, folder: Path) -> Path:
    """The calibration inputs as a file."""
    data = folder / "data.npz"
    if not data.exists():
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(data, **{c.input: np.concatenate(c.samples)})
    return data


def compiled(c: Case, artifact: Path, reuse: bool) -> Path:
    """Our program, compiled anew unless `reuse`."""
    if reuse and artifact.exists():
        return artifact
    start = time.perf_counter()
    compile_model(c.path, calibration=({c.input: x} for x in c.samples)).save(artifact)
    click.echo(f"{c.name}: compiled in {time.perf_counter() - start:.1f} s with {len(c.samples)} samples", err=True)
    return artifact


def quantized(python: str, recipe: str, model: Path, data: Path, out: Path) -> Path:
    """A peer's int8 model, made once."""
    if not out.exists():
        command = [python, str(HERE / "benchmarks" / "peers.py"), recipe, str(model), str(data), str(out)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return out


def measure(name: str, found: Mapping[str, tuple[str, str, Path]], data: Path, threads: int, turns: Turns) -> Row:
    """All runtimes in turn."""
    cpus = sorted(os.sched_getaffinity(0))[-threads:] if hasattr(os, "sched_getaffinity") else []
    times: dict[str, list[list[float]]] = {runtime: [] for runtime in found}
    with ExitStack() as stack:
        orders = {n: (py, {"engine": e, "model": str(f), "threads": threads, "cpus": cpus, "data": str(data)}) for n, (py, e, f) in found.items()}
        workers = {runtime: stack.enter_context(worker(py, order)) for runtime, (py, order) in orders.items()}
        for _ in range(turns.rounds):
            for runtime, w in workers.items():
                time.sleep(PAUSE)
                times[runtime].append(w.turn(turns.milliseconds, turns.clock if threads == 1 else "wall"))
        about = {runtime: w.about for runtime, w in workers.items()}
    return summarized(name, threads, times, about)


def summarized(model: str, threads: int, turns: Mapping[str, Sequence[Sequence[float]]], about: Mapping[str, str]) -> Row:
    """From the milliseconds of the calls of every turn."""
    medians = {name: np.array([np.median(t) for t in ts]) for name, ts in turns.items()}
    figures = {name: figure(medians[name], np.concatenate([np.asarray(t) for t in ts]), about[name]) for name, ts in turns.items()}
    ratio = {name: float(np.median(m / medians[OURS])) for name, m in medians.items() if name != OURS}
    return Row(model, threads, figures, ratio)


def figure(medians: Any, calls: Any, about: str) -> Figure:
    """Summary of one runtime."""
    low, high = np.percentile(calls, (10, 90))
    return Figure(float(np.median(medians)), float(low), float(high), float(calls.min()), about)


# --- what is reported ------------------------------------------------------------------------------------------------


def mean_gain(rows: Sequence[Row]) -> float:
    """Geometric mean over the models."""
    return float(np.exp(np.mean([np.log(r.gain) for r in rows])))


def markdown(rows: Sequence[Row]) -> str:
    """One table per number of threads."""
    return "\n\n".join(table(n, [r for r in rows if r.threads == n]) for n in sorted({r.threads for r in rows}))


def table(threads: int, rows: Sequence[Row]) -> str:
    """Milliseconds, and how much faster than the fastest peer."""
    names = [n for n in (OURS, *PEERS) if any(n in r.figures for r in rows)]
    lines = [f"{threads} thread(s), ms: median (best)", "", f"| model | {' | '.join(names)} | fastest peer / ours |", "|" + "---|" * (len(names) + 2)]
    for r in rows:
        cells = [f"{r.figures[n].median:.3f} ({r.figures[n].best:.3f})" if n in r.figures else "-" for n in names]
        lines.append(f"| {r.model} | {' | '.join(cells)} | {r.gain:.2f}x ({r.fastest}) |")
    return "\n".join([*lines, "", f"geometric mean {mean_gain(rows):.2f}x, least {min(r.gain for r in rows):.2f}x"])


def machine() -> dict[str, Any]:
    """Where this was measured."""
    clock = (
        [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("cpu MHz")]
        if sys.platform == "linux"
        else []
    )
    target = host_target()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "cpu": cpu_name(),
        "target": target.name,
        "features": target.features,
        "reported_mhz": clock[:1],
        "peak_gops": peak_gops(target),
        "load": load,
    }


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(NAMES))
@click.option("--threads", multiple=True, type=int, default=(1,), help="May be repeated.")
@click.option("--rounds", default=25, show_default=True, help="Turns of each runtime.")
@click.option("--milliseconds", default=40.0, show_default=True, help="Length of a turn.")
@click.option("--clock", type=click.Choice(("wall", "cpu")), default="wall", help="cpu: time on a core, for one thread on a busy machine.")
@click.option("--reuse", is_flag=True, help="Measure our artifacts of the last run instead of compiling anew.")
@click.option("--samples", default=128, show_default=True, help="Calibration inputs.")
@click.option("--peers-python", default=sys.executable, help="Interpreter that has openvino and nncf.")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write all figures here.")
def main(
    names: tuple[str, ...],
    threads: tuple[int, ...],
    rounds: int,
    milliseconds: float,
    clock: str,
    reuse: bool,
    samples: int,
    peers_python: str,
    output: Path | None,
) -> None:
    """Compare on the models (all by default)."""
    CACHE.mkdir(parents=True, exist_ok=True)
    rows = list[Row]()
    for name in names or NAMES:
        c = case(name, CACHE, samples)
        found = engines(c, peers_python, samples, reuse)
        rows += [measure(c.name, found, stored(c, CACHE / digest(c, samples)), n, Turns(rounds, milliseconds, clock)) for n in threads]
        click.echo(f"{name}: {' '.join(f'{r.gain:.2f}x' for r in rows[-len(threads) :])}", err=True)
    facts = machine()
    click.echo(
        f"{facts['cpu']}, {facts['target']}, peak {facts['peak_gops']:.0f} GOP/s, {clock} time, load {facts['load']}, "
        f"{date.today()}\n\n{markdown(rows)}"
    )
    if output:
        output.write_text(json.dumps({**facts, "clock": clock, "date": str(date.today()), "rows": [asdict(r) for r in rows]}, indent=1))


if __name__ == "__main__":
    main()
