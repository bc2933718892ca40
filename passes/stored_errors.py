"""By how much storing shifts the mean of what convolutions read: E[Q(x) - x] per channel, on some samples.

Levels that are few, unevenly spaced or clipped do not round to zero on average. A layer's bias takes that back with the error of its weights
(the "quantization-error-aware bias correction" of Li et al. 2024, "RepQuant", section 4.4; Nagel et al. 2019 for weights alone):

    b' = b + W E[x] - S W_q E[Q(x)] = b - (S W_q - W) E[x] - S W_q E[Q(x) - x]

At 8 bits the second part is nothing beside the first, and is not looked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from qcompiler.frontend.export import export
from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.ops import Conv
from qcompiler.ir.types import Quantization

from .calibrate import session

Feeds = Mapping[str, NDArray[np.generic]]


def stored_errors(graph: Graph, quantization: Mapping[Value, Quantization], samples: Sequence[Feeds]) -> dict[Value, NDArray[np.float64]]:
    """[C] of every operand of convolutions that has fewer than 8 bits, or fewer levels."""
    read = dict.fromkeys(v.inputs[0] for v in graph.order if isinstance(v.op, Conv))
    narrow = [v for v in read if v in quantization and _is_narrow(quantization[v])]
    if not narrow or not samples:
        return {}
    exported = export(graph, narrow)
    runner, names = session(exported), [exported.names[v] for v in narrow]
    sums = {v: np.zeros(v.shape[-1]) for v in narrow}
    for feeds in samples:
        for v, x in zip(narrow, runner.run(names, dict(feeds))):
            sums[v] += _mean_error(np.transpose(x, np.argsort(exported.perms[v])), quantization[v])
    return {v: total / len(samples) for v, total in sums.items()}


def _is_narrow(q: Quantization) -> bool:
    return q.bits < 8 or q.levels is not None


def _mean_error(x: NDArray[np.floating], q: Quantization) -> NDArray[np.float64]:
    """Per channel of the last axis."""
    errors = q.dequantize(q.quantize(x)) - x
    return np.asarray(errors.reshape(-1, x.shape[-1]).mean(0))
