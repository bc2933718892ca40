"""Fused operators of com.microsoft against onnxruntime, which defines them."""

import numpy as np
import onnxruntime as ort
import pytest
from onnx_graphs import Spelled

from qcompiler.errors import UnsupportedModel
from qcompiler.frontend import import_model
from qcompiler.ir.interpret import evaluate

MS = "com.microsoft"
B, N, H, D = 2, 5, 4, 8
C = H * D


def check(o, *outputs, seed=0):
    model = o.model(*outputs)
    graph = import_model(model)
    rng = np.random.default_rng(seed)
    feeds = {v.name: rng.standard_normal(v.shape).astype(np.float32) if v.type.dtype.is_float else rng.integers(0, 2, v.shape) for v in graph.inputs}
    feeds = {v.name: feeds[v.name].astype(v.type.dtype.numpy) for v in graph.inputs}
    for name, x in feeds.items():
        if name == "mask":
            x[:, 0] = 1
    expected = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)
    for found, wanted in zip(evaluate(graph, feeds).values(), expected):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=2e-5)


def ms(o, kind, *operands, outputs=1, **attributes):
    return o.op(kind, *operands, outputs=outputs, domain=MS, **attributes)


@pytest.mark.parametrize("kind, operands", [("Gelu", 0), ("BiasGelu", 1), ("FastGelu", 0), ("FastGelu", 1), ("QuickGelu", 0)])
def test_activations(kind, operands):
    o = Spelled()
    attributes = {"alpha": 1.5} if kind == "QuickGelu" else {}
    check(o, ms(o, kind, o.input(B, N, C), *[o.weights(C)] * operands, **attributes))


@pytest.mark.parametrize("bias", [False, True])
def test_skip_layer_normalization(bias):
    o = Spelled()
    operands = [o.input(B, N, C), o.input(B, N, C, name="skip"), o.weights(C), o.weights(C), *([o.weights(C)] if bias else [])]
    y, _, _, total = ms(o, "SkipLayerNormalization", *operands, outputs=4, epsilon=1e-5)
    o.nodes[-1].output[1:3] = ["", ""]
    check(o, y, total)


def test_skip_simplified_layer_normalization():
    o = Spelled()
    check(o, ms(o, "SkipSimplifiedLayerNormalization", o.input(B, N, C), o.input(B, N, C, name="skip"), o.weights(C), epsilon=1e-5))


def test_simplified_layer_normalization():
    o = Spelled()
    check(o, o.op("SimplifiedLayerNormalization", o.input(B, N, C), o.weights(C), axis=-1, epsilon=1e-5, stash_type=1))


def test_embeddings():
    o = Spelled()
    ids = o.input(B, N, name="ids", dtype=np.int32)
    kinds = o.input(B, N, name="kinds", dtype=np.int32)
    tables = o.weights(9, C), o.weights(7, C), o.weights(2, C)
    y, _ = ms(o, "EmbedLayerNormalization", ids, kinds, *tables, o.weights(C), o.weights(C), outputs=2, epsilon=1e-5)
    o.nodes[-1].output[1] = ""
    check(o, y)


def test_scaled_product():
    o = Spelled()
    check(o, ms(o, "FusedMatMul", o.input(B, N, C), o.input(B, N, C, name="y"), transB=1, alpha=0.25))


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("masked", [False, True])
def test_attention(causal, masked):
    o = Spelled()
    mask = [o.input(B, N, name="mask", dtype=np.int32)] if masked else []
    check(o, ms(o, "Attention", o.input(B, N, C), o.weights(C, 3 * C), o.weights(3 * C), *mask, num_heads=H, unidirectional=causal))


@pytest.mark.parametrize("bias", [False, True])
def test_multi_head_attention(bias):
    o = Spelled()
    q, k, v = (o.input(B, N, C, name=n) for n in "qkv")
    check(o, ms(o, "MultiHeadAttention", q, k, v, o.weights(3 * C) if bias else "", num_heads=H))


def test_multi_head_attention_with_mask_and_bias():
    o = Spelled()
    q, k, v = (o.input(B, N, C, name=n) for n in "qkv")
    mask = o.input(B, N, name="mask", dtype=np.int32)
    check(o, ms(o, "MultiHeadAttention", q, k, v, "", mask, o.weights(1, H, N, N), num_heads=H))


def test_multi_head_attention_on_heads():
    o = Spelled()
    k, v = (o.input(B, H, N, D, name=n) for n in "kv")
    check(o, ms(o, "MultiHeadAttention", o.input(B, N, C), k, v, num_heads=H, scale=0.5))


@pytest.mark.parametrize("rotary", [0, 1])
def test_group_query_attention(rotary):
    width = 16
    o = Spelled()
    q, k, v = (o.input(1, N, heads * width, name=n) for n, heads in (("q", H), ("k", 2), ("v", 2)))
    angles = np.arange(N)[:, None] / 10 ** (np.arange(width // 2) / 4)
    tables = [np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)] if rotary else []
    lengths = np.array([N - 1], np.int32), np.array(N, np.int32)
    y, _, _ = ms(o, "GroupQueryAttention", q, k, v, "", "", *lengths, *tables, outputs=3, num_heads=H, kv_num_heads=2, do_rotary=rotary)
    check(o, y)


@pytest.mark.parametrize("neighbours", [0, 1])
@pytest.mark.parametrize("apart", [False, True])
def test_rotary_embedding(neighbours, apart):
    o = Spelled()
    angles = np.arange(N)[:, None] / 10 ** (np.arange(D // 2) / 4)
    x = o.input(B, H, N, D) if apart else o.input(B, N, C)
    tables = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    check(o, ms(o, "RotaryEmbedding", x, np.tile(np.arange(N), (B, 1)), *tables, interleaved=neighbours))


def refusal(o, y):
    with pytest.raises(UnsupportedModel) as error:
        import_model(o.model(y))
    return str(error.value)


def test_caches_are_refused():
    o = Spelled()
    q, k, v = (o.input(B, N, C, name=n) for n in "qkv")
    past = [o.input(B, H, 3, D, name=n) for n in ("past_k", "past_v")]
    assert "cache" in refusal(o, ms(o, "MultiHeadAttention", q, k, v, "", "", "", *past, num_heads=H))


def test_lengths_as_masks_are_refused():
    o = Spelled()
    mask = o.input(B, name="mask", dtype=np.int32)
    assert "lengths" in refusal(o, ms(o, "Attention", o.input(B, N, C), o.weights(C, 3 * C), o.weights(3 * C), mask, num_heads=H))


def test_what_is_not_known_is_named_with_its_domain():
    o = Spelled()
    assert "com.microsoft.NoSuchThing" in refusal(o, ms(o, "NoSuchThing", o.input(B, N, C)))
