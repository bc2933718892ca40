"""`make demo`: compile the bundled networks for this machine and for arm64, run both, and print what came out."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from qcompiler.api import Program, build, quantize_model
from qcompiler.cli.bench import cpu_name
from qcompiler.runtime.bench import compare

HERE = Path(__file__).parent
NETWORKS = ("digits_resnet", "digits_dwconv")
TARGETS = ("host", "arm64")
EMULATED = 50
"""Images that are run under emulation; this machine runs all."""

Images = NDArray[np.float32]


@dataclass(frozen=True)
class Result:
    """One row of the table."""

    network: str
    target: str
    images: int
    float_top1: float
    top1: float
    same_bits: bool
    latency: str
    sizes: str


def top1(logits: Images, labels: NDArray[np.int64]) -> float:
    """Percent of digits named right."""
    return 100 * float((logits.argmax(1) == labels).mean())


def single_thread(path: Path) -> onnxruntime.InferenceSession:
    """The float network in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def latency(program: Program, floats: onnxruntime.InferenceSession, image: Images) -> str:
    """Microseconds of one image, ours and those of ONNX Runtime's float kernels; nothing under emulation."""
    if not program.target.runs_here:
        return "emulated"
    feeds = {"input": image}
    times = compare({"ours": lambda: program.run(feeds), "float": lambda: floats.run(None, feeds)}, seconds=0.5)
    return f"{1000 * times['ours'].median:.0f} us, float {1000 * times['float'].median:.0f} us"


def sizes(program: Program) -> str:
    """Bytes of the program and of its working memory."""
    interface, total = program.interface, len(program.image.data)
    return f"{total / 1024:.0f}, {interface.weights_size / 1024:.0f}, {interface.arena_size / 1024:.0f}"


def measured(network: str, program: Program, images: Images, labels: NDArray[np.int64]) -> Result:
    """Run a compiled network beside its float original."""
    count = len(images) if program.target.runs_here else EMULATED
    feeds, floats = {"input": images[:count]}, single_thread(HERE / f"{network}.onnx")
    ours, real = program.run(feeds)["logits"], floats.run(None, feeds)[0]
    same = ours.tobytes() == program.reference(feeds)["logits"].tobytes()
    answers = labels[:count]
    return Result(
        network, program.target.name, count, top1(real, answers), top1(ours, answers), same, latency(program, floats, images[:1]), sizes(program)
    )


def table(results: list[Result]) -> Table:
    """The results for people."""
    shown = Table(title=f"Handwritten digits on {cpu_name()}, Python {platform.python_version()}", title_justify="left")
    accuracy = ("images", "float top-1", "int8 top-1", "bits of the reference")
    for heading in ("network", "target", *accuracy, "one image, from Python", "image, weights, arena KB"):
        shown.add_column(heading)
    for r in results:
        same = "all equal" if r.same_bits else "[bold red]DIFFERENT[/]"
        shown.add_row(r.network, r.target, str(r.images), f"{r.float_top1:.1f}", f"{r.top1:.1f}", same, r.latency, r.sizes)
    return shown


def main() -> None:
    """Compile, run, print; fails where a bit differs."""
    calibration, evaluation = np.load(HERE / "digits_calib.npz"), np.load(HERE / "digits_eval.npz")
    console, results = Console(), []
    for network in NETWORKS:
        with console.status(f"compiling {network}"):
            model = quantize_model(HERE / f"{network}.onnx", [{"input": calibration["input"]}])
            for target in TARGETS:
                results.append(measured(network, build(model, target), evaluation["input"], evaluation["labels"]))
    Console(width=None if console.is_terminal else 150).print(table(results))
    if not all(r.same_bits for r in results):
        raise SystemExit("compiled and reference results differ: please report it")


if __name__ == "__main__":
    main()
