"""Real networks survive the round trip ONNX -> IR -> ONNX, before and after simplification."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from qcompiler.frontend import import_model
from qcompiler.frontend.export import export
from qcompiler.ir.graph import Graph
from qcompiler.passes.simplify import simplify

ZOO = Path(__file__).parents[3] / "shared" / "zoo"
CONVOLUTIONAL = ["cifar10_resnet20", "cifar10_resnet8_mlperftiny", "cifar10_resnet18", "kws_dscnn", "imagenet_mobilenetv2", "imagenet_squeezenet11"]
TRANSFORMERS = ["stories260k_lm", "minilm_l6_sts", "cifar10_vit", "dinov2s14_cifar10_112_w16"]
RNG = np.random.default_rng(0)

pytestmark = pytest.mark.skipif(not ZOO.exists(), reason=f"no models at {ZOO}")


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)


def feeds_of(graph: Graph) -> dict[str, np.ndarray]:
    invented = {v: RNG.standard_normal(v.shape) if v.type.dtype.is_float else RNG.integers(0, 2, v.shape) for v in graph.inputs}
    return {v.name: data.astype(v.type.dtype.numpy) for v, data in invented.items()}


@pytest.mark.parametrize("transform", [lambda g: g, simplify], ids=["imported", "simplified"])
@pytest.mark.parametrize("name", [*CONVOLUTIONAL, *TRANSFORMERS])
def test_round_trip(name: str, transform: Callable[[Graph], Graph]) -> None:
    original = onnx.load(ZOO / f"{name}.onnx")
    graph = transform(import_model(original))
    model, feeds = export(graph).model, feeds_of(graph)
    onnx.checker.check_model(model, full_check=True)
    for actual, expected in zip(run(model, feeds), run(original, feeds)):
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_convolutional_networks_come_back_channels_first(name: str) -> None:
    model = export(simplify(import_model(onnx.load(ZOO / f"{name}.onnx")))).model
    assert sum(n.op_type == "Transpose" for n in model.graph.node) <= 1
