"""The network in other runtimes, for `qcompile compare --peers`: float and int8, quantized by each project's own recipe (`recipes`)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import UsageError

from .data import Input
from .floats import FloatModel
from .recipes import quantize_onnxruntime, quantize_openvino

Array = NDArray[Any]
Feeds = Mapping[str, Array]


class Network(Protocol):
    """Something that answers: `run` gives the outputs by name."""

    def run(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """Outputs of one sample."""


@dataclass(frozen=True)
class Task:
    """What every peer is given: the float network's file, samples to calibrate on, the program's inputs, threads of a call, a folder for files."""

    model: Path
    calibration: Sequence[Feeds]
    inputs: list[Input]
    threads: int
    folder: Path


@dataclass(frozen=True)
class Opened:
    """A peer that is ready, and the bytes of its weights' file."""

    network: Network
    size: int


@dataclass(frozen=True)
class OpenVino:
    """A compiled model of OpenVINO on the CPU, in the precision that its file has."""

    request: Any
    names: tuple[str, ...]

    @classmethod
    def open(cls, file: Path, threads: int) -> OpenVino:
        """Float stays float32: on some CPUs OpenVINO would choose bfloat16."""
        import openvino

        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(str(file), "CPU", settings)
        return cls(compiled.create_infer_request(), tuple(o.any_name for o in compiled.outputs))

    def run(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """Outputs by name."""
        results = self.request.infer(feeds)
        return {name: np.array(results[i]) for i, name in enumerate(self.names)}


def _onnxruntime_int8(task: Task) -> Opened:
    out = task.folder / "onnxruntime.onnx"
    quantize_onnxruntime(task.model, task.calibration, out)
    return Opened(FloatModel.open(str(out), task.inputs, task.threads), out.stat().st_size)


def _openvino(task: Task) -> Opened:
    return Opened(OpenVino.open(task.model, task.threads), task.model.stat().st_size)


def _openvino_int8(task: Task) -> Opened:
    out = task.folder / "openvino.xml"
    quantize_openvino(task.model, task.calibration, out)
    return Opened(OpenVino.open(out, task.threads), out.with_suffix(".bin").stat().st_size)


@dataclass(frozen=True)
class Peer:
    """A runtime other than ours: how its row is called, the packages that it needs, and how it is opened."""

    title: str
    packages: tuple[str, ...]
    open: Callable[[Task], Opened]

    @property
    def runtime(self) -> str:
        """The first word of the title."""
        return self.title.split()[0]


PEERS: Mapping[str, Peer] = {
    "onnxruntime-int8": Peer("onnxruntime int8", ("onnxruntime",), _onnxruntime_int8),
    "openvino": Peer("OpenVINO float", ("openvino",), _openvino),
    "openvino-int8": Peer("OpenVINO int8", ("openvino", "nncf"), _openvino_int8),
}


def named_peers(text: str | None) -> list[Peer]:
    """Those that `text` lists, separated by commas. UsageError for others, and for packages that are missing."""
    names = list(dict.fromkeys(n.strip() for n in (text or "").split(",") if n.strip()))
    for name in names:
        if name not in PEERS:
            raise UsageError(f"--peers knows {', '.join(PEERS)}; found {name!r}")
        if missing := [p for p in PEERS[name].packages if find_spec(p) is None]:
            raise UsageError(f"the peer {name} needs {' and '.join(missing)}, which is not installed; pip install 'qcompiler[peers]'")
    return [PEERS[name] for name in names]


def opened(peers: Sequence[Peer], task: Task) -> dict[str, tuple[Peer, Opened]]:
    """All of them by title; files of each have a folder of their own. What they print goes to standard error: standard output is ours."""
    found = {}
    for n, peer in enumerate(peers):
        folder = task.folder / str(n)
        folder.mkdir()
        with redirect_stdout(sys.stderr):
            found[peer.title] = (peer, peer.open(replace(task, folder=folder)))
    return found
