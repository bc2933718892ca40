"""The fastest of onnxruntime and OpenVINO, float and int8, that is still accurate: the peer that a transformer is measured against.

    python -m benchmarks.rivals prepare --peers-python /other/venv/bin/python [names]     compiles, quantizes the peers, judges everybody
    python -m benchmarks.rivals time [names]                                              some ten seconds per network: when the machine is quiet

Each runtime answers the evaluation inputs in a process of its own (`answers.py`); whoever loses more than the metric's tolerance (1 point
or 1 %) against the float network is timed, but does not count. Times are taken in turns, as in `compare.py`.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import click
import numpy as np

from benchmarks.compare import CACHE, HERE, OURS, Turns, measure, quantized
from benchmarks.measure import Feeds, options_for
from benchmarks.zoo import SEQUENCE_NETWORKS, TASKS, Data, Task
from qcompiler.api import Program, build, quantize_model
from qcompiler.runtime.cpu import cpu_name

FLOAT = "ORT float"
SAMPLES = 128
TURNS = Turns(9, 60.0, "wall")
Engines = Mapping[str, tuple[str, str, Path]]
"""Name -> (interpreter, engine, model file)."""


@dataclass(frozen=True)
class Prepared:
    """All runtimes of a network with their losses, ready to be timed on the inputs `data`."""

    engines: Engines
    losses: dict[str, float]
    tolerance: float
    data: Path

    @property
    def accurate(self) -> list[str]:
        """The peers that count."""
        return [name for name, loss in self.losses.items() if loss <= self.tolerance]


@dataclass(frozen=True)
class Rivals:
    """Milliseconds and losses by runtime, the accurate ones, and the fastest of them; `gain` is its time over ours."""

    milliseconds: dict[str, float]
    losses: dict[str, float]
    accurate: list[str]
    fastest: str
    gain: float


def prepared(task: Task, data: Data, program: Program, samples: int, limit: int | None, python: str) -> Prepared:
    """Everything that takes long: the peers' int8 models, their answers, and `program` as an artifact."""
    peers, folder = engines(task, data, samples, python), folder_of(task, samples)
    metrics = judged(peers, data, limit, folder)
    losses = {name: task.metric.loss(metrics[FLOAT], found) for name, found in metrics.items()}
    program.save(folder / "ours")
    everyone = {OURS: (sys.executable, OURS, folder / "ours"), **peers}
    found = Prepared(everyone, losses, task.metric.tolerance, stored(folder / "one.npz", data.evaluation[:1]))
    (folder / "prepared.json").write_text(json.dumps({"engines": {n: [*map(str, e)] for n, e in everyone.items()}, "losses": losses}))
    return found


def reopened(task: Task, samples: int) -> Prepared:
    """What `prepared` left on disk."""
    folder = folder_of(task, samples)
    if not (folder / "prepared.json").exists():
        raise click.ClickException(f"{task.name} is not prepared: expected {folder / 'prepared.json'}; run `python -m benchmarks.rivals prepare`")
    found = json.loads((folder / "prepared.json").read_text())
    known = {name: (python, engine, Path(model)) for name, (python, engine, model) in found["engines"].items()}
    return Prepared(known, found["losses"], task.metric.tolerance, folder / "one.npz")


def timed(name: str, ready: Prepared, turns: Turns = TURNS) -> Rivals:
    """Speed of every peer against ours."""
    row = measure(name, ready.engines, ready.data, 1, turns)
    fastest = min(ready.accurate, key=lambda peer: row.ratio[peer])
    return Rivals({n: f.median for n, f in row.figures.items()}, ready.losses, ready.accurate, fastest, row.ratio[fastest])


def folder_of(task: Task, samples: int) -> Path:
    """Where the files of a network are kept."""
    content = hashlib.sha256(task.path.read_bytes() + str(samples).encode())
    return CACHE / f"{task.name}-{content.hexdigest()[:12]}"


def engines(task: Task, data: Data, samples: int, python: str) -> Engines:
    """The five peers; the int8 models are made once."""
    folder = folder_of(task, samples)
    folder.mkdir(parents=True, exist_ok=True)
    calibration = folder / "data.npz"
    if not calibration.exists():
        stored(calibration, data.calibration[:samples])
    return {
        FLOAT: (sys.executable, "ort", task.path),
        "ORT int8": (sys.executable, "ort", quantized(sys.executable, "ort", task.path, calibration, folder / "ort.onnx")),
        "ORT dynamic int8": (sys.executable, "ort", quantized(sys.executable, "ort-dynamic", task.path, calibration, folder / "dynamic.onnx")),
        "OpenVINO float": (python, "openvino", task.path),
        "OpenVINO int8": (python, "openvino", quantized(python, "openvino", task.path, calibration, folder / "openvino.xml")),
    }


def stored(path: Path, samples: Sequence[Feeds]) -> Path:
    """Samples as a file, every input under its name."""
    np.savez(path, **{name: np.concatenate([s[name] for s in samples]) for name in samples[0]})
    return path


def judged(peers: Engines, data: Data, limit: int | None, folder: Path) -> dict[str, float]:
    """The metric of every peer; answers once given are kept."""
    inputs, found = stored(folder / "inputs.npz", data.first(limit)), dict[str, float]()
    for name, (python, engine, model) in peers.items():
        out = folder / f"{name.replace(' ', '_')}-{limit or 'all'}.npy"
        if not out.exists():
            click.echo(f"accuracy of {name}", err=True)
            subprocess.run([python, str(HERE / "benchmarks" / "answers.py"), engine, str(model), str(inputs), str(out)], check=True)
        found[name] = data.judge(list(np.load(out)))
    return found


# --- by themselves ---------------------------------------------------------------------------------------------------


@click.group()
def main() -> None:
    """Prepare first, then time."""


NAMES = click.argument("names", nargs=-1, type=click.Choice(list(TASKS)))


@main.command()
@NAMES
@click.option("--peers-python", default=sys.executable, help="Interpreter that has openvino and nncf.")
@click.option("--samples", default=SAMPLES, show_default=True, help="Calibration inputs.")
@click.option("--limit", type=int, help="Judge the peers on the first so many samples only.")
def prepare(names: tuple[str, ...], peers_python: str, samples: int, limit: int | None) -> None:
    """Compile at W8A8, quantize the peers, judge their accuracy."""
    for task in (TASKS[name] for name in names or SEQUENCE_NETWORKS):
        data = task.load()
        program = build(quantize_model(task.path, data.calibration[:samples], options=options_for("w8a8")))
        ready = prepared(task, data, program, samples, limit, peers_python)
        click.echo(f"{task.name}: losses {ready.losses}")


@main.command()
@NAMES
@click.option("--samples", default=SAMPLES, show_default=True, help="As they were prepared.")
@click.option("--rounds", default=TURNS.rounds, show_default=True, help="Turns of each runtime.")
def time(names: tuple[str, ...], samples: int, rounds: int) -> None:
    """The table of times, one thread."""
    lines = [f"{cpu_name()}, {date.today()}, 1 thread, ms, in brackets the loss", ""]
    tasks = [TASKS[name] for name in names or SEQUENCE_NETWORKS]
    ready = {task.name: reopened(task, samples) for task in tasks}
    peers = list(next(iter(ready.values())).losses)
    lines += [f"| network | ours | {' | '.join(peers)} | fastest accurate peer / ours |", "|" + "---|" * (len(peers) + 3)]
    turns = Turns(rounds, TURNS.milliseconds, TURNS.clock)
    click.echo("\n".join(lines + [line(name, timed(name, found, turns)) for name, found in ready.items()]))


def line(name: str, found: Rivals) -> str:
    """One row of the table."""
    cells = [f"{found.milliseconds[peer]:.2f} ({loss:+.3g})" for peer, loss in found.losses.items()]
    return f"| {name} | {found.milliseconds[OURS]:.2f} | {' | '.join(cells)} | {found.gain:.2f}x ({found.fastest}) |"


if __name__ == "__main__":
    main()
