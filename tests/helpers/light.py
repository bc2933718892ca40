"""The `data/light` graphs of the onnx package: real architectures with weights that are all alike, here filled with random ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
NAMES = (
    "squeezenet", "shufflenet", "inception_v1", "inception_v2", "densenet121", "resnet50", "bvlc_alexnet", "zfnet512", "vgg19",
)  # fmt: skip


def light(name: str, seed: int = 0) -> onnx.ModelProto:
    """The network with He-initialized weights, small biases and normalizations that nearly change nothing."""
    model = onnx.load(FOLDER / f"light_{name}.onnx")
    rng = np.random.default_rng(seed)
    shapes = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    role = {i: (n.op_type, k) for n in model.graph.node for k, i in enumerate(n.input)}
    constants = [n for n in model.graph.node if n.op_type == "ConstantOfShape" and n.input[0] in shapes]
    for node in constants:
        data = _weights(tuple(int(d) for d in shapes[node.input[0]]), *role.get(node.output[0], ("", 0)), rng)
        model.graph.initializer.append(numpy_helper.from_array(data, node.output[0]))
        model.graph.node.remove(node)
    return model


def _weights(shape: tuple[int, ...], kind: str, operand: int, rng: np.random.Generator) -> np.ndarray:
    normal = rng.standard_normal(shape, np.float32)
    if len(shape) >= 2:
        return normal * np.float32(np.sqrt(2 / np.prod(shape[1:])))
    near_one = (kind == "BatchNormalization" and operand in (1, 4)) or kind in ("Mul", "Unsqueeze")
    return np.exp(normal * np.float32(0.2)) if near_one else normal * np.float32(0.1)
