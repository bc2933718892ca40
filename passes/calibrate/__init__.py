"""Calibration: what ranges values take on sample data, and which quantization follows from them.

The float graph runs through onnxruntime, sample by sample; every tensor is reduced at once to `Statistics`, so memory does not
depend on the number of samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from os import cpu_count

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from qcompiler.errors import UsageError
from qcompiler.frontend.export import Exported, export
from qcompiler.ir.graph import Graph, Value

from .samples import Feeds, samples, synthetic_batches
from .statistics import Statistics, combine, observe

__all__ = ["Statistics", "calibrate", "samples", "session", "synthetic_batches"]


def calibrate(
    graph: Graph,
    batches: Iterable[Feeds],
    values: Sequence[Value],
    progress: Callable[[int], None] | None = None,
    gather: Callable[[Value, NDArray[np.floating]], None] | None = None,
) -> dict[Value, Statistics]:
    """Statistics of `values` over all samples of `batches`; `progress` hears the number of samples done so far, `gather` sees each array of each.

    Raises UsageError for batches that do not fit the inputs, for no batch at all, and where a value becomes NaN or infinite.
    """
    exported = export(graph, values)
    runner = session(exported)
    names = list(dict.fromkeys(exported.names[v] for v in values))
    result: dict[Value, Statistics] = {}
    done = 0
    for feeds in (s for batch in batches for s in samples(graph, batch)):
        tensors = dict(zip(names, runner.run(names, feeds) if names else []))
        for v in values:
            x = tensors[exported.names[v]]
            result[v] = combine(result.get(v), _observed(v, x, exported))
            if gather is not None:
                gather(v, np.transpose(x, np.argsort(exported.perms[v])))
        done += 1
        if progress is not None:
            progress(done)
    if not done:
        raise UsageError("calibration data: expected at least one batch, found none. Give some hundred samples, or none to use synthetic inputs.")
    return result


def session(exported: Exported) -> ort.InferenceSession:
    """onnxruntime on all cores for an exported graph."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = cpu_count() or 1
    return ort.InferenceSession(exported.model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _observed(v: Value, x: NDArray[np.generic], exported: Exported) -> Statistics:
    perm = exported.perms[v]
    try:
        return observe(x, perm.index(v.type.rank - 1) if perm else None)
    except ValueError as error:
        remedy = "Check the preprocessing of the samples and the weights of the model."
        raise UsageError(f"calibration: expected finite numbers in value '{v.name}', found {error}. {remedy}") from error
