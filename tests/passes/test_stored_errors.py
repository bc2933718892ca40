"""The mean error of what is stored in few levels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from float_graphs import Build, graph_of

from qcompiler.ir.types import Quantization
from qcompiler.passes.stored_errors import stored_errors

RNG = np.random.default_rng(5)
NARROW = Quantization.per_tensor(0.3, 1, 4)
CODED = replace(Quantization.per_tensor(0.02), levels=(-100, -20, 0, 7, 110))


@pytest.mark.parametrize("quantization", [NARROW, CODED])
def test_errors_are_the_mean_of_what_storing_adds(quantization: Quantization) -> None:
    b = Build()
    x = b.input(1, 4, 5, 6)
    data = [RNG.gamma(1.0, 1.0, (1, 4, 5, 6)).astype(np.float32) for _ in range(3)]
    found = stored_errors(graph_of(b.conv(x, 3)), {x: quantization}, [{x.name: d} for d in data])
    every = np.concatenate(data).astype(np.float64)
    stored = quantization.dequantize(quantization.quantize(every))
    np.testing.assert_allclose(found[x], (stored - every).mean((0, 1, 2)), rtol=0, atol=1e-12)
    assert (found[x] < 0).all(), "what is clipped is stored too small"


def test_eight_bits_are_not_looked_at() -> None:
    b = Build()
    x = b.input(1, 4, 5, 6)
    assert stored_errors(graph_of(b.conv(x, 3)), {x: Quantization.per_tensor(0.02)}, [{x.name: np.ones((1, 4, 5, 6), np.float32)}]) == {}
