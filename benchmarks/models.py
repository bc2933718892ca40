"""The models of the speed comparison, each as a file and its calibration inputs: the zoo's, and three of ONNX's `data/light`.

The latter come with constant weights. So that no compiler can profit from that, they are given random weights (He et al. 2015, fixed
seed), the same for everybody; their inputs are noise, and their accuracy means nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.backend.test
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper, version_converter

from .zoo import NETWORKS

Array = NDArray[Any]
LIGHT = Path(onnx.backend.test.__file__).parent / "data" / "light"
ZOO_NAMES = {
    "resnet20": "cifar10_resnet20",
    "resnet8": "cifar10_resnet8_mlperftiny",
    "kws_dscnn": "kws_dscnn",
    "mobilenetv2": "imagenet_mobilenetv2",
    "squeezenet11": "imagenet_squeezenet11",
}
LIGHT_NAMES = {"resnet50": "resnet50", "densenet121": "densenet121", "shufflenet": "shufflenet"}
NAMES = (*ZOO_NAMES, *LIGHT_NAMES)
OPSET = 17
LIGHT_SAMPLES = 16


@dataclass(frozen=True)
class Case:
    """A model file, the name of its input, and inputs for calibration and measurement."""

    name: str
    path: Path
    input: str
    samples: tuple[Array, ...]


def case(name: str, folder: Path, samples: int) -> Case:
    """The case called `name`; files that have to be made are put into `folder`."""
    if name in ZOO_NAMES:
        network = NETWORKS[ZOO_NAMES[name]]
        data = tuple(x for x, _ in islice(network.batches("calib"), samples))
        return Case(name, network.path, onnx.load(network.path, load_external_data=False).graph.input[0].name, data)
    path = folder / f"light_{name}.onnx"
    if not path.exists():
        onnx.save(with_random_weights(onnx.load(LIGHT / path.name)), path)
    return Case(name, path, onnx.load(path).graph.input[0].name, tuple(noise(min(samples, LIGHT_SAMPLES))))


def noise(count: int) -> Iterator[Array]:
    """Images of standard normal noise."""
    rng = np.random.default_rng(1)
    for _ in range(count):
        yield rng.standard_normal((1, 3, 224, 224), np.float32)


def with_random_weights(model: ModelProto) -> ModelProto:
    """The model with drawn weights as ordinary initializers, in a recent opset."""
    graph, rng = model.graph, np.random.default_rng(0)
    shapes = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    generated = [n for n in graph.node if n.op_type == "ConstantOfShape"]
    weights = {n.output[0]: drawn(tuple(int(d) for d in shapes[n.input[0]]), rng) for n in generated}
    used = {name for n in graph.node if n not in generated for name in n.input}
    kept = {name: a if a.dtype != np.float32 or a.size == 1 else drawn(a.shape, rng) for name, a in shapes.items() if name in used}
    nodes = [n for n in graph.node if n.op_type != "ConstantOfShape"]
    inputs = [i for i in graph.input if i.name not in shapes]
    initializers = [numpy_helper.from_array(a, name) for name, a in (weights | kept).items()]
    clean = onnx.helper.make_graph(nodes, graph.name, inputs, list(graph.output), initializers)
    opsets = list(model.opset_import)
    return version_converter.convert_version(onnx.helper.make_model(clean, opset_imports=opsets, ir_version=8), OPSET)


def drawn(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Weights of standard deviation sqrt(2 / fan in); vectors (scales, variances, biases) around 1."""
    if len(shape) <= 1:
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return (rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / np.prod(shape[1:])))).astype(np.float32)
