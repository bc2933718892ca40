"""One runtime in a process of its own, told by `compare.py` over a pipe what to open and when to run.

    {"engine": "ours" | "ort" | "openvino", "model": path, "threads": 1, "cpus": [1], "data": npz}    answered by {"ready": description}
    {"milliseconds": 40, "clock": "wall" | "cpu"}                                                     answered by {"nanoseconds": [...]}

Every answer is one line of JSON. While others run, a worker waits for its next line.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from time import perf_counter_ns, process_time_ns
from typing import Any

import numpy as np

AGAIN = 2
"""Calls at the start of each turn that are not counted: caches and predictors belong to the previous runtime."""
Call = Callable[[], object]
CLOCKS = {"wall": perf_counter_ns, "cpu": process_time_ns}


def ours(model: str, feeds: dict[str, Any], threads: int) -> tuple[Call, str]:
    """A compiled artifact."""
    from inspect import signature

    from qcompiler import runtime

    known = "threads" in signature(runtime.load).parameters
    program = runtime.load(model, threads=threads) if known else runtime.load(model)  # type: ignore[call-arg, unused-ignore]
    return (lambda: program.run(feeds)), f"qcompiler, {threads if known else 1} thread(s)"


def ort(model: str, feeds: dict[str, Any], threads: int) -> tuple[Call, str]:
    """An onnxruntime session."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return (lambda: session.run(None, feeds)), f"onnxruntime {onnxruntime.__version__}"


def openvino(model: str, feeds: dict[str, Any], threads: int) -> tuple[Call, str]:
    """An OpenVINO request whose input tensors are set once; outputs are not copied."""
    import openvino as ov

    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    compiled = ov.Core().compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()
    for name, array in feeds.items():
        request.set_tensor(name, ov.Tensor(array))
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    return request.infer, f"openvino {ov.__version__.partition('-')[0]}, {precision} for what is not int8"


ENGINES = {"ours": ours, "ort": ort, "openvino": openvino}


def turn(call: Call, milliseconds: float, clock: Callable[[], int] = perf_counter_ns) -> list[int]:
    """Nanoseconds of single calls for about so long, at least three."""
    for _ in range(AGAIN):
        call()
    times, end = list[int](), perf_counter_ns() + int(milliseconds * 1e6)
    while len(times) < 3 or perf_counter_ns() < end:
        start = clock()
        call()
        times.append(clock() - start)
    return times


def main() -> None:
    """Answer line by line until the pipe is closed."""
    order = json.loads(sys.stdin.readline())
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, order["cpus"])
    archive = np.load(order["data"])
    feeds = {name: np.ascontiguousarray(archive[name][:1]) for name in archive.files}
    call, description = ENGINES[order["engine"]](order["model"], feeds, order["threads"])
    turn(call, 100)
    print(json.dumps({"ready": description}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps({"nanoseconds": turn(call, order["milliseconds"], CLOCKS[order["clock"]])}), flush=True)


if __name__ == "__main__":
    main()
