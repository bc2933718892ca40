"""The fastest of onnxruntime and OpenVINO, float and int8, that is still accurate: the peer that a transformer is measured against.

Each runtime answers the evaluation inputs in a process of its own (`answers.py`); whoever loses more than the metric's tolerance (1 point
or 1 %) against the float network is timed, but does not count. Times are taken in turns, as in `compare.py`.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np

from benchmarks.compare import CACHE, HERE, OURS, Turns, measure, quantized
from benchmarks.measure import Feeds
from benchmarks.zoo import Data, Task
from qcompiler.api import Program

FLOAT = "ORT float"
Engines = Mapping[str, tuple[str, str, Path]]
"""Name -> (interpreter, engine, model file)."""


@dataclass(frozen=True)
class Rivals:
    """Milliseconds and losses by runtime, the accurate ones, and the fastest of them; `gain` is its time over ours."""

    milliseconds: dict[str, float]
    losses: dict[str, float]
    accurate: list[str]
    fastest: str
    gain: float


def rivals(task: Task, data: Data, program: Program, samples: int, limit: int | None, python: str, turns: Turns) -> Rivals:
    """Accuracy and speed of every peer against `program`."""
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        peers = engines(task, data, samples, python)
        metrics = judged(peers, data, limit, folder)
        losses = {name: task.metric.loss(metrics[FLOAT], found) for name, found in metrics.items()}
        accurate = [name for name, loss in losses.items() if loss <= task.metric.tolerance]
        program.save(folder / "ours")
        everyone = {OURS: (sys.executable, OURS, folder / "ours"), **peers}
        row = measure(task.name, everyone, stored(folder / "one.npz", data.evaluation[:1]), 1, turns)
    fastest = min(accurate, key=lambda name: row.ratio[name])
    return Rivals({name: f.median for name, f in row.figures.items()}, losses, accurate, fastest, row.ratio[fastest])


def engines(task: Task, data: Data, samples: int, python: str) -> Engines:
    """The four peers; the int8 models are made once."""
    content = hashlib.sha256(task.path.read_bytes() + str(samples).encode())
    folder = CACHE / f"{task.name}-{content.hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    calibration = folder / "data.npz"
    if not calibration.exists():
        stored(calibration, data.calibration[:samples])
    return {
        FLOAT: (sys.executable, "ort", task.path),
        "ORT int8": (sys.executable, "ort", quantized(sys.executable, "ort", task.path, calibration, folder / "ort.onnx")),
        "OpenVINO float": (python, "openvino", task.path),
        "OpenVINO int8": (python, "openvino", quantized(python, "openvino", task.path, calibration, folder / "openvino.xml")),
    }


def stored(path: Path, samples: Sequence[Feeds]) -> Path:
    """Samples as a file, every input under its name."""
    np.savez(path, **{name: np.concatenate([s[name] for s in samples]) for name in samples[0]})
    return path


def judged(peers: Engines, data: Data, limit: int | None, folder: Path) -> dict[str, float]:
    """The metric of every peer."""
    inputs, found = stored(folder / "inputs.npz", data.first(limit)), dict[str, float]()
    for name, (python, engine, model) in peers.items():
        click.echo(f"accuracy of {name}", err=True)
        out = folder / "answers.npy"
        subprocess.run([python, str(HERE / "benchmarks" / "answers.py"), engine, str(model), str(inputs), str(out)], check=True)
        found[name] = data.judge(list(np.load(out)))
    return found
