"""The architectures of onnx's `data/light`: programs for this machine and for arm64 equal the reference.

All nine, with figures: benchmarks/light.py.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from light import light

from qcompiler.api import QuantizedModel, build, quantize_model

HOST = ("squeezenet", "shufflenet", "inception_v1")
ARM = ("squeezenet", "shufflenet")


@cache
def quantized(name: str) -> QuantizedModel:
    model = light(name)
    rng, given = np.random.default_rng(1), {t.name for t in model.graph.initializer}
    x = next(i for i in model.graph.input if i.name not in given)
    shape = [d.dim_value for d in x.type.tensor_type.shape.dim]
    return quantize_model(model, ({x.name: rng.standard_normal(shape, np.float32)} for _ in range(2)))


def assert_exact(name: str, target: str) -> None:
    program = build(quantized(name), target)
    feeds = {v.name: np.random.default_rng(2).standard_normal(v.shape, np.float32) for v in program.graph.inputs}
    made, expected = program.run(feeds), program.reference(feeds)
    for key, values in expected.items():
        np.testing.assert_array_equal(made[key], values, strict=True)
        assert np.unique(values).size > 1
    assert program.certificate.ok


@pytest.mark.slow
@pytest.mark.parametrize("name", HOST)
def test_host(name: str) -> None:
    assert_exact(name, "host")


@pytest.mark.slow
@pytest.mark.parametrize("name", ARM)
def test_arm64(name: str) -> None:
    assert_exact(name, "arm64-dotprod")
