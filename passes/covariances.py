"""What the inputs of convolutions look like: the covariance of their windows, on some samples.

    H = E (x - E x)(x - E x)^T        x the kh * kw * C/groups numbers under a window, one H per group

shrunk towards the identity where the windows are few (Ledoit & Wolf 2004, "A well-conditioned estimator for large-dimensional
covariance matrices", with the simplest weight).
Windows are thinned to some hundred per sample: neighbours say much the same. Layers that have few to a sample, such as classifiers behind an average,
look at more samples (`of_few_windows`): as many windows as numbers in them say nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from qcompiler.frontend.export import export
from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.ops import Const, Conv

from .calibrate import session

Floats = NDArray[np.float64]
Feeds = Mapping[str, NDArray[np.generic]]

WINDOWS = 512
"""Windows per sample, at most."""
PRODUCTS = 50_000_000
"""Products per sample, at most: large convolutions look at fewer windows."""
LARGEST = 2304
"""Convolutions of more weights per output than this keep plain rounding: H and its inverse grow with the square and the cube."""


def covariances(graph: Graph, samples: Sequence[Feeds]) -> dict[Value, Floats]:
    """[groups, K, K] of every convolution of constant weights, K = kh * kw * C/groups in the order of the weights."""
    convs = _convolutions(graph)
    read = list(dict.fromkeys(v.inputs[0] for v in convs if not isinstance(v.inputs[0].op, Const)))
    exported = export(graph, read)
    runner = session(exported)
    names = list(dict.fromkeys(exported.names[v] for v in read))
    sums = {v: Moments() for v in convs}
    for feeds in samples:
        tensors = dict(zip(names, runner.run(names, dict(feeds)) if names else []))
        for v in convs:
            x = tensors[exported.names[v.inputs[0]]]
            sums[v].add(windows(v, np.transpose(x, np.argsort(exported.perms[v.inputs[0]]))))
    return {v: moments.covariance() for v, moments in sums.items() if moments.count}


def _convolutions(graph: Graph) -> list[Value]:
    return [v for v in graph.order if isinstance(v.op, Conv) and isinstance(v.inputs[1].op, Const) and np.prod(v.inputs[1].shape[1:]) <= LARGEST]


def of_few_windows(graph: Graph, samples: int) -> dict[Value, Moments]:
    """The convolutions that have fewer windows in so many samples than numbers in a window, with moments yet to be gathered."""
    return {v: Moments() for v in _convolutions(graph) if samples * v.type.size // v.shape[3] < np.prod(v.inputs[1].shape[1:])}


def windows(v: Value, x: NDArray[np.floating]) -> NDArray[np.float32]:
    """Some windows of x [N,H,W,C] under convolution `v`: [groups, n, K]."""
    op, w = v.op, v.inputs[1].shape
    assert isinstance(op, Conv)
    padded = np.pad(x, ((0, 0), *op.pads, (0, 0)))
    (dh, dw), (sh, sw) = op.dilations, op.strides
    every = sliding_window_view(padded, (dh * (w[1] - 1) + 1, dw * (w[2] - 1) + 1), axis=(1, 2))[:, ::sh, ::sw, :, ::dh, ::dw]
    n, oh, ow = every.shape[:3]
    wanted = min(WINDOWS, max(1, PRODUCTS // (op.groups * int(np.prod(w[1:])) ** 2)))
    step = max(1, n * oh * ow // wanted)
    picked = np.arange(step // 2, n * oh * ow, step)
    rows = every[np.unravel_index(picked, (n, oh, ow))]  # [picked, C, kh, kw]
    grouped = rows.reshape(len(picked), op.groups, -1, *w[1:3]).transpose(1, 0, 3, 4, 2)
    return np.ascontiguousarray(grouped.reshape(op.groups, len(picked), -1), np.float32)


class Moments:
    """Running sums of windows and their products."""

    def __init__(self) -> None:
        self.count = 0
        self.sum: Floats | float = 0.0
        self.products: Floats | float = 0.0

    def add(self, x: NDArray[np.float32]) -> None:
        """Windows [groups, n, K]. Sums over one sample have some hundred terms: single precision does."""
        self.count += x.shape[1]
        self.sum = self.sum + x.sum(1, dtype=np.float64)
        self.products = self.products + (x.transpose(0, 2, 1) @ x).astype(np.float64)

    def covariance(self) -> Floats:
        """Shrunk towards a multiple of the identity by K / n: what n windows say of K^2 numbers is worth that much less."""
        mean = np.asarray(self.sum) / self.count
        h = np.asarray(self.products) / self.count - mean[:, :, None] * mean[:, None, :]
        weight = min(1.0, h.shape[1] / self.count)
        variance = np.diagonal(h, axis1=1, axis2=2).mean(1)
        return (1 - weight) * h + weight * variance[:, None, None] * np.eye(h.shape[1])
