"""The operator tests of the onnx package for transformers, as integer programs: the bits of the reference, near the float answers, no float code.

Operands of queries, keys, values and positions are fed; masks and parameters of normalizations are constants of the model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from node_cases import all_tests, name_of
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from qcompiler.api import build, quantize_model

FED = {"Q", "K", "V", "input", "X", "x", "data", "cos_cache", "sin_cache", "position_ids", "past_key", "past_value"}
PARAMETERS = {"LayerNormalization": {"X"}, "RMSNormalization": {"X"}, "GroupNormalization": {"x"}}
NAMES = [
    "attention_4d",
    "attention_4d_causal",
    "attention_4d_scaled",
    "attention_4d_gqa_causal",
    "attention_4d_gqa_attn_mask",
    "attention_4d_attn_mask_bool_4d",
    "attention_4d_attn_mask_3d_causal",
    "attention_4d_diff_heads_sizes",
    "attention_3d",
    "attention_3d_gqa",
    "attention_3d_transpose_verification",
    "rotary_embedding",
    "rotary_embedding_interleaved",
    "rotary_embedding_with_rotary_dim",
    "layer_normalization_default_axis",
    "layer_normalization_3d_axis_negative_2_epsilon",
    "rms_normalization_default_axis",
    "group_normalization_epsilon",
    "gelu_tanh_1",
    "swish",
    "softmax_default_axis",
    "lpnormalization_default",
]
FLOOR = 25.0
"""Decibels above the error, with eight random samples to calibrate on."""

TESTS = {name_of(t): t for t in all_tests()}


def with_constants(test: Any) -> onnx.ModelProto:
    """The model, with all operands that are not fed as initializers."""
    model, arrays = onnx.ModelProto(), test.data_sets[0][0]
    model.CopyFrom(test.model)
    fed = PARAMETERS.get(model.graph.node[0].op_type, FED)
    for value, array in zip(list(model.graph.input), arrays):
        if value.name not in fed:
            model.graph.input.remove(value)
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), value.name))
    return model


def samples(model: onnx.ModelProto, test: Any, count: int) -> list[dict[str, np.ndarray]]:
    """Random real numbers, and the test's own integers."""
    rng = np.random.default_rng(0)
    given = {v.name: np.asarray(a) for v, a in zip(test.model.graph.input, test.data_sets[0][0])}
    real = [v.name for v in model.graph.input if given[v.name].dtype.kind == "f"]
    fixed = {v.name: given[v.name] for v in model.graph.input}
    return [fixed | {n: rng.normal(size=given[n].shape).astype(given[n].dtype) for n in real} for _ in range(count)]


@pytest.mark.parametrize("name", NAMES)
def test_programs_are_exact_and_near_the_float_answers(name: str) -> None:
    test = TESTS[name]
    model = with_constants(test)
    *shown, feeds = samples(model, test, 9)
    program = build(quantize_model(model, shown))
    found, expected = program.run(feeds), program.reference(feeds)
    for key, values in expected.items():
        np.testing.assert_array_equal(found[key], values, strict=True)
    assert program.certificate.ok
    real = np.asarray(ReferenceEvaluator(model).run(None, feeds)[0], np.float64)
    noise = real - next(iter(found.values()))
    assert 10 * np.log10((real**2).mean() / (noise**2).mean()) > FLOOR
