"""Spatial operators with random attributes: the importer and the interpreter agree with onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

from qcompiler.errors import ModelError
from qcompiler.frontend import import_model
from qcompiler.ir.interpret import evaluate

small = st.integers(1, 3)
sizes = st.integers(1, 9)


def model(op: str, shape: list[int], operands: dict[str, np.ndarray], opset: int = 17, **attributes: Any) -> ModelProto:
    node = helper.make_node(op, ["x", *operands], ["y"], **{k: v for k, v in attributes.items() if v is not None})
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", shape), ("y", None)))
    stored = [numpy_helper.from_array(a, n) for n, a in operands.items()]
    return helper.make_model(helper.make_graph([node], "g", [x], [y], stored), opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def session(m: ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    return ort.InferenceSession(m.SerializeToString(), options, providers=["CPUExecutionProvider"])


def agree(m: ModelProto) -> None:
    """Both give the same result; what onnxruntime refuses, and windows that do not fit even once, are not looked at."""
    try:
        peer = session(m)
        x = np.random.default_rng(0).standard_normal(peer.get_inputs()[0].shape).astype(np.float32)
        expected = peer.run(None, {"x": x})[0]
    except Exception:
        assume(False)
    assume(expected.size)
    try:
        graph = import_model(m)
    except ModelError as e:
        assume("does not fit" not in str(e))
        raise
    found = evaluate(graph, {"x": x})[graph.outputs[0]]
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


@st.composite
def windows(draw: st.DrawFn, auto: bool = True) -> tuple[int, dict[str, Any]]:
    """Number of dimensions, and the attributes strides, dilations and either pads or auto_pad."""
    rank = draw(st.sampled_from([1, 2]))
    lists = {name: draw(st.none() | st.lists(small, min_size=rank, max_size=rank)) for name in ("strides", "dilations")}
    mode = draw(st.sampled_from(["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"])) if auto else "NOTSET"
    pads = draw(st.none() | st.lists(st.integers(0, 2), min_size=2 * rank, max_size=2 * rank)) if mode == "NOTSET" else None
    return rank, {**lists, "pads": pads, "auto_pad": mode}


@settings(max_examples=60, deadline=None)
@given(
    window=windows(),
    groups=small,
    per_in=small,
    per_out=small,
    kernel=st.lists(small, min_size=2, max_size=2),
    size=st.lists(sizes, min_size=2, max_size=2),
)
def test_conv(window: tuple[int, dict[str, Any]], groups: int, per_in: int, per_out: int, kernel: list[int], size: list[int]) -> None:
    rank, attributes = window
    operands = {"w": floats(groups * per_out, per_in, *kernel[:rank]), "b": floats(groups * per_out)}
    agree(model("Conv", [2, groups * per_in, *size[:rank]], operands, group=groups, **attributes))


@settings(max_examples=60, deadline=None)
@given(
    window=windows(auto=False),
    groups=small,
    per_in=small,
    per_out=small,
    kernel=st.lists(small, min_size=2, max_size=2),
    size=st.lists(sizes, min_size=2, max_size=2),
)
def test_conv_transpose(window: tuple[int, dict[str, Any]], groups: int, per_in: int, per_out: int, kernel: list[int], size: list[int]) -> None:
    rank, attributes = window
    operands = {"w": floats(groups * per_in, per_out, *kernel[:rank])}
    agree(model("ConvTranspose", [2, groups * per_in, *size[:rank]], operands, group=groups, **attributes))


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@settings(max_examples=60, deadline=None)
@given(
    window=windows(),
    ceil=st.booleans(),
    include=st.booleans(),
    kernel=st.lists(small, min_size=2, max_size=2),
    size=st.lists(sizes, min_size=2, max_size=2),
)
def test_pool(op: str, window: tuple[int, dict[str, Any]], ceil: bool, include: bool, kernel: list[int], size: list[int]) -> None:
    rank, attributes = window
    assume(not (attributes["dilations"] and "SAME" in attributes["auto_pad"]))  # onnxruntime forgets the dilations there
    if op == "AveragePool":
        attributes = {**attributes, "dilations": None, "count_include_pad": int(include)}
    agree(model(op, [2, 3, *size[:rank]], {}, kernel_shape=kernel[:rank], ceil_mode=int(ceil), **attributes))


@settings(max_examples=80, deadline=None)
@given(
    mode=st.sampled_from(["nearest", "linear"]),
    coordinates=st.sampled_from(["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]),
    nearest=st.sampled_from(["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]),
    before=st.lists(sizes, min_size=2, max_size=2),
    after=st.lists(sizes, min_size=2, max_size=2),
)
def test_resize(mode: str, coordinates: str, nearest: str, before: list[int], after: list[int]) -> None:
    operands = {"roi": floats(0), "scales": floats(0), "sizes": np.array([1, 2, *after], np.int64)}
    m = model("Resize", [1, 2, *before], operands, mode=mode, coordinate_transformation_mode=coordinates, nearest_mode=nearest)
    agree(m)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), shape=st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_slice(data: st.DataObject, shape: list[int]) -> None:
    bound, step = st.integers(-7, 7) | st.sampled_from([2**63 - 1, -(2**63)]), st.sampled_from([-3, -2, -1, 1, 2, 3])
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), unique=True, min_size=1))
    columns = {n: [data.draw(e) for _ in axes] for n, e in (("starts", bound), ("ends", bound))}
    operands = {**columns, "axes": axes, "steps": [data.draw(step) for _ in axes]}
    m = model("Slice", shape, {n: np.array(v, np.int64) for n, v in operands.items()})
    if any(len(range(d)[slice(a, b, s)]) == 0 for d, a, b, s in zip((shape[i] for i in axes), *(operands[n] for n in ("starts", "ends", "steps")))):
        with pytest.raises(ModelError, match="no elements"):
            import_model(m)
    else:
        agree(m)
