"""The float interpreter against the operator tests of the onnx package: every test of every imported operator."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
from node_cases import check, imported_tests, name_of

from qcompiler.errors import QCompilerError

ELEMENT_TYPE = "an element type that is not supported: bfloat16, float8, below 8 bits, strings"
VOLUME = "three spatial dimensions"
TRAINING = "training mode"
EMPTY = "a tensor without elements"
BLOCKS = "scales per block"
NO_TENSOR = "inputs that are no tensors"
CUBIC = "two taps per axis express nearest and linear only"
CROP = "coordinates outside of the image take a constant"
ANTIALIAS = "more than two taps per axis"
INDICES = "the indices of MaxPool"
OLD = "opset 1"
CAPPED = "softcap"
LOGITS = "products of queries and keys as a result"
CACHE = "lengths of a cache of keys and values"
LEAST = "the least elements"
ROWS = "the greatest of several rows"
DIAGONAL = "the diagonal of a matrix"

REFUSED = {
    "*bf16*": ELEMENT_TYPE,
    "*b[fF]loat16*": ELEMENT_TYPE,
    "cast*BFLOAT16*": ELEMENT_TYPE,
    "cast*FLOAT[48]*": ELEMENT_TYPE,
    "cast*INT[24]*": ELEMENT_TYPE,
    "*quantizelinear_e[45]m[23]*": ELEMENT_TYPE,
    "*quantizelinear_*int[24]": ELEMENT_TYPE,
    "*quantizelinear_float4e2m1": ELEMENT_TYPE,
    "equal_string*": ELEMENT_TYPE,
    "averagepool_3d_*": VOLUME,
    "maxpool_3d_*": VOLUME,
    "convtranspose_3d": VOLUME,
    "batchnorm_*_training_mode": TRAINING,
    "training_dropout*": TRAINING,
    "*_empty_set*": EMPTY,
    "tri[lu]_zero": EMPTY,
    "attention_*softcap*": CAPPED,
    "attention_*qk_matmul*": LOGITS,
    "attention_*nonpad*": CACHE,
    "attention_4d_diff_heads_mask4d_padded_kv": CACHE,
    "attention_local_window_gqa_rank4_mask": CAPPED,
    "attention_*ext_cache*": CACHE,
    "einsum_batch_diagonal": DIAGONAL,
    "causal_conv_with_state_kernel_size_one_expanded": EMPTY,
    "constantofshape_int_shape_zero": EMPTY,
    "reshape_allowzero_reordered": EMPTY,
    "shape_start_greater_than_end": EMPTY,
    "slice_start_out_of_bounds": EMPTY,
    "split_zero_size_splits_*": EMPTY,
    "*quantizelinear_blocked*": BLOCKS,
    "identity_sequence": NO_TENSOR,
    "identity_opt": NO_TENSOR,
    "maxpool_with_argmax_2d_precomputed_*": INDICES,
    "top_k_smallest": LEAST,
    **dict.fromkeys(("top_k", "top_k_same_values_2d", "top_k_negative_axis", "top_k_uint64"), ROWS),
    "not_[234]d": OLD,
    "resize_*_cubic*": CUBIC,
    "resize_tf_crop_and_resize*": CROP,
    "resize_downsample_*_linear_antialias": ANTIALIAS,
}
"""Tests that are refused with an error, and why."""

ACCEPTED = {"training_dropout_zero_ratio*", "attention_*[!6]_expanded", "attention_*fp16_expanded"}
"""Tests that pass although a pattern above matches."""

DIFFERENT = {
    "resize_downsample_scales_linear_align_corners": "onnxruntime and we use the integer output size in the formula, the test 4 * 0.6 = 2.4",
    **dict.fromkeys(
        ("attention_4d_fp16", "attention_4d_causal_fp16", "attention_4d_gqa_with_past_and_present_fp16"),
        "the expected values scale queries and keys by the root of the scale, so that float16 rounds elsewhere",
    ),
    "causal_conv_with_state_silu_fp16_expanded": "the expected values are computed in float32, here float16 sums round",
}
"""Tests whose expected values are not ours, and why."""


def refusal(name: str) -> str | None:
    if any(fnmatchcase(name, pattern) for pattern in ACCEPTED):
        return None
    return next((pattern for pattern in REFUSED if fnmatchcase(name, pattern)), None)


TESTS = {name_of(t): t for t in imported_tests()}
PASSING = [name for name in TESTS if refusal(name) is None and name not in DIFFERENT]


@pytest.mark.parametrize("name", PASSING)
def test_operator(name: str) -> None:
    check(TESTS[name])


@pytest.mark.parametrize("pattern", REFUSED)
def test_refused(pattern: str) -> None:
    matching = [name for name in TESTS if refusal(name) == pattern]
    assert matching, f"no test is called {pattern}: remove it from the table"
    for name in matching:
        with pytest.raises(QCompilerError):
            check(TESTS[name])


@pytest.mark.parametrize("name", DIFFERENT)
def test_different(name: str) -> None:
    with pytest.raises(AssertionError):
        check(TESTS[name])


def test_coverage() -> None:
    """Each operator of convolutional networks is imported, and tested above."""
    tested = {n.op_type for t in TESTS.values() for n in t.model.graph.node}
    assert set(OPERATORS.split()) <= tested


OPERATORS = """
    Conv ConvTranspose Gemm MatMul BatchNormalization Relu Clip LeakyRelu PRelu Elu Selu Sigmoid HardSigmoid HardSwish Tanh Softplus Mish
    Erf Gelu Exp Sqrt Reciprocal Add Sub Mul Div Min Max Pow Neg Abs MaxPool AveragePool GlobalAveragePool GlobalMaxPool ReduceMean ReduceSum
    ReduceMax Softmax LogSoftmax ArgMax Concat Split Slice Pad Reshape Flatten Squeeze Unsqueeze Transpose Expand Tile Gather Resize Upsample
    DepthToSpace SpaceToDepth LRN InstanceNormalization Identity Dropout Cast Shape Constant ConstantOfShape Where QuantizeLinear
    DequantizeLinear
"""
