"""Real networks: the imported graph computes what onnxruntime computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from qcompiler.frontend import import_model
from qcompiler.ir.graph import Graph
from qcompiler.ir.interpret import evaluate

ZOO = Path(__file__).parents[3] / "shared" / "zoo"
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"

CONVOLUTIONAL = [
    "cifar10_resnet20",
    "cifar10_resnet8_mlperftiny",
    "cifar10_resnet18",
    "kws_dscnn",
    "imagenet_mobilenetv2",
    "imagenet_squeezenet11",
    "stories260k_lm",
]


def sample(graph: Graph) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {v.name: rng.standard_normal(v.shape).astype(np.float32) if v.type.dtype.is_float else rng.integers(0, 100, v.shape) for v in graph.inputs}


def relative_error(model: onnx.ModelProto) -> float:
    """Greatest difference from onnxruntime over the greatest output."""
    graph = import_model(model)
    feeds = sample(graph)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    needed = {i.name for i in session.get_inputs()}
    expected = session.run(list(graph.output_names), {name: x for name, x in feeds.items() if name in needed})
    found = evaluate(graph, feeds)
    return max(float(np.abs(found[v] - y).max() / np.abs(y).max()) for v, y in zip(graph.outputs, expected))


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_zoo(name: str) -> None:
    path = ZOO / f"{name}.onnx"
    if not path.exists():
        pytest.skip(f"{path} is not on this machine")
    assert relative_error(onnx.load(path)) < 1e-5


def without_softmax(model: onnx.ModelProto) -> onnx.ModelProto:
    """The logits as output: those of the generated weights are huge and nearly equal, so that a softmax says nothing."""
    last = model.graph.node[-1]
    if last.op_type == "Softmax":
        model.graph.node.pop()
        model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info(last.input[0], onnx.TensorProto.FLOAT, None))
    return model


@pytest.mark.parametrize("path", sorted(LIGHT.glob("*.onnx")), ids=lambda p: p.stem)
def test_light(path: Path) -> None:
    assert relative_error(without_softmax(onnx.load(path))) < 1e-4
