"""Transformers of the zoo: all their normalizations, attentions and rotations are found, and they compute what onnxruntime computes."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from float_graphs import census

from qcompiler.frontend import import_model
from qcompiler.frontend.export import export
from qcompiler.ir.interpret import evaluate
from qcompiler.ir.ops import Input, Transpose
from qcompiler.ir.sequence import Attention, Normalize
from qcompiler.ir.verify import Stage, verify
from qcompiler.passes.legalize import legalize
from qcompiler.passes.simplify import simplify

ZOO = Path(__file__).parents[3] / "shared" / "zoo"

EXPECTED = {
    "cifar10_vit": {"Normalize": 19, "Attention": 9},
    "dinov2s14_cifar10_112_w16": {"Normalize": 25, "Attention": 12},
    "minilm_l6_sts": {"Normalize": 14, "Attention": 6},
    "stories260k_lm": {"Normalize": 11, "Attention": 5, "Rotate": 10},
}
"""minilm: 13 layer normalizations, and the embedding is brought to length 1."""


def sample(graph):
    rng = np.random.default_rng(0)
    feeds = {v.name: rng.standard_normal(v.shape) if v.type.dtype.is_float else rng.integers(0, 100, v.shape) for v in graph.inputs}
    feeds |= {"attention_mask": np.arange(64)[None] < 40} if "attention_mask" in feeds else {}
    return {v.name: feeds[v.name].astype(v.type.dtype.numpy) for v in graph.inputs}


def run(model, feeds):
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)


def error(found, expected):
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(found, expected))


@pytest.mark.parametrize("name", EXPECTED)
def test_zoo(name):
    if not (path := ZOO / f"{name}.onnx").exists():
        pytest.skip(f"{path} is not on this machine")
    model = onnx.load(path)
    graph = verify(simplify(import_model(model)), Stage.float)
    counted = census(graph)
    assert {k: counted[k] for k in ("Normalize", "Attention", "Rotate") if counted[k]} == EXPECTED[name]
    assert not {"MatMul", "Softmax", "Div", "Sqrt"} & counted.keys()
    assert all(isinstance(v.inputs[0].op, Input) for v in graph.order if isinstance(v.op, Transpose))
    assert simplify(graph) is graph
    feeds = sample(graph)
    expected = run(model, feeds)
    assert error(evaluate(graph, feeds).values(), expected) < 1e-5
    assert error(run(export(graph).model, feeds), expected) < 1e-4
    verify(legalize(graph), Stage.float)


def test_language_model_is_causal_and_without_means():
    if not (path := ZOO / "stories260k_lm.onnx").exists():
        pytest.skip(f"{path} is not on this machine")
    ops = [v.op for v in simplify(import_model(path)).order]
    assert all(op.causal and not op.bias and not op.mask for op in ops if isinstance(op, Attention))
    assert not any(op.centered for op in ops if isinstance(op, Normalize))
