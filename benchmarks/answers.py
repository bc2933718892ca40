"""Another runtime's answers to many inputs, so that its accuracy can be judged beside its speed.

    python benchmarks/answers.py ort|openvino MODEL DATA.npz OUT.npy

DATA.npz holds every input under its name, one sample per row; OUT.npy gets the first output of every row. This file imports nothing of
the project, as `worker.py` and `peers.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[[dict[str, Any]], Any]


def ort(model: str) -> Run:
    """An onnxruntime session."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(None, feeds)[0]


def openvino(model: str) -> Run:
    """An OpenVINO model."""
    import openvino as ov

    compiled = ov.Core().compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY"})
    return lambda feeds: np.array(compiled(feeds)[0])


ENGINES: dict[str, Callable[[str], Run]] = {"ort": ort, "openvino": openvino}


def main(engine: str, model: str, data: str, out: str) -> None:
    """Run every row."""
    run, archive = ENGINES[engine](model), np.load(data)
    inputs = {name: archive[name] for name in archive.files}
    count = len(next(iter(inputs.values())))
    answers = (run({name: rows[i : i + 1] for name, rows in inputs.items()}) for i in range(count))
    np.save(Path(out), np.stack(list(answers)))


if __name__ == "__main__":
    main(*sys.argv[1:])
