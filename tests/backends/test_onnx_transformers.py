"""Quantized ONNX of transformers at every precision: 16-bit streams, narrow integers, codebooks, and what has no integer operator."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import net
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import transformer_networks  # noqa: F401 - registers its networks
from onnx import ModelProto, numpy_helper

from qcompiler.backends.onnx import export_qdq, export_qoperator
from qcompiler.backends.onnx.bound import saturates
from qcompiler.backends.onnx.qoperator import fuse_quantized
from qcompiler.frontend import import_model
from qcompiler.frontend.export import Fuse, export
from qcompiler.ir import ops
from qcompiler.ir import pointwise as pw
from qcompiler.ir.graph import Graph, Value, apply
from qcompiler.ir.interpret import evaluate
from qcompiler.ir.types import DType, Quantization, float_type, quantized
from qcompiler.passes.pipeline import Options, Quantized, quantize
from qcompiler.passes.weight_grid import MOST, ends_of

NAMES = ("vit", "bert", "llama")
PRECISIONS = [(8, 8), (6, 6), (4, 4)]
FUSES: dict[str, Fuse] = {"qdq": lambda v: None, "qoperator": fuse_quantized}
needs_exact_runtime = pytest.mark.skipif(saturates(), reason="onnxruntime's int8 kernels saturate on x86 without VNNI")
Arrays = dict[Value, np.ndarray]
Feeds = Mapping[str, np.ndarray]


@cache
def made(name: str, bits: tuple[int, int]) -> tuple[Quantized, Feeds]:
    model = net.NETWORKS[name]()
    options = Options(weight_bits=bits[0], activation_bits=bits[1])
    return quantize(import_model(model), net.inputs(model, 12), options), net.inputs(model, 1, seed=9)[0]


def session(model: ModelProto, optimized: bool = True) -> ort.InferenceSession:
    onnx.checker.check_model(model, full_check=True)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def decibels(real: np.ndarray, found: np.ndarray) -> float:
    real, found = real.astype(np.float64), found.astype(np.float64)
    return 10 * float(np.log10((real**2).sum() / max(((real - found) ** 2).sum(), 1e-30)))


def in_onnxruntime(graph: Graph, feeds: Feeds, fuse: Fuse) -> Arrays:
    """All quantized values, in the IR's order of axes, with nothing optimized."""
    stored = [v for v in graph.order if isinstance(v.op, ops.Quantize)]
    written = export(graph, stored, fuse)
    names = list(dict.fromkeys(written.names[v] for v in stored))
    found = dict(zip(names, session(written.model, False).run(names, dict(feeds))))
    return {v: found[written.names[v]].transpose(np.argsort(written.perms[v])) for v in stored}


def interpreted(v: Value, integers: Arrays, feeds: Feeds) -> np.ndarray:
    """The Quantize `v` by our interpreter, on the `integers` that its operands have in onnxruntime."""
    new: dict[Value, Value] = {}
    for i in Graph((), (v,), ()).order:
        given = i in integers and i is not v
        new[i] = ops.constant(integers[i], i.name, i.type) if given else Value(i.op, tuple(new[o] for o in i.inputs), i.type, i.name)
    (result,) = evaluate(Graph((), (new[v],), ("y",)), feeds).values()
    return np.asarray(result)


def levels_between(v: Value, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How many steps apart, or levels of the codebook."""
    levels = v.type.quant.levels  # type: ignore[union-attr]
    a, b = (np.searchsorted(levels, q) if levels is not None else q.astype(int) for q in (a, b))
    return np.abs(a - b)


@pytest.mark.parametrize("fuse", FUSES)
@pytest.mark.parametrize("bits", PRECISIONS)
@pytest.mark.parametrize("name", NAMES)
@needs_exact_runtime
def test_every_value_is_that_of_the_interpreter(name: str, bits: tuple[int, int], fuse: str) -> None:
    """Given the integers before it, each differs by one step at most, where floats fall on the other side of a tie: rarely."""
    quantized, feeds = made(name, bits)
    found = in_onnxruntime(quantized.exchange_graph, feeds, FUSES[fuse])
    assert len(found) > 30
    gaps = {v: levels_between(v, interpreted(v, found, feeds), theirs) for v, theirs in found.items()}
    assert max(int(gap.max()) for gap in gaps.values()) <= 1
    assert np.mean(np.concatenate([gap.ravel() > 0 for gap in gaps.values()])) < 0.01


@pytest.mark.parametrize("export_model", [export_qdq, export_qoperator])
@pytest.mark.parametrize("bits", PRECISIONS)
@pytest.mark.parametrize("name", NAMES)
@needs_exact_runtime
def test_answers_with_the_defaults(name: str, bits: tuple[int, int], export_model: object) -> None:
    """As an application loads it, optimized. Ties that fall otherwise are amplified on the way, the more the fewer bits there are."""
    quantized, feeds = made(name, bits)
    (expected,) = evaluate(quantized.exchange_graph, feeds).values()
    (actual,) = session(export_model(quantized.exchange_graph)).run(None, dict(feeds))  # type: ignore[operator]
    assert decibels(expected, actual) > 20


def opset(model: ModelProto) -> int:
    return next(o.version for o in model.opset_import if not o.domain)


def chain(*quants: Quantization | None) -> Graph:
    """x, or its GELU, through Quantize and Dequantize of each."""
    x = v = apply(ops.Input(float_type(2, 700)), name="x")
    for n, quant in enumerate(quants):
        assert quant is not None
        q = apply(ops.Quantize(quantized(v.shape, quant)), v, name=f"q{n}")
        v = apply(pw.Gelu(), apply(ops.Dequantize(), q, name=f"v{n}"), name=f"gelu{n}")
    return Graph((x,), (v,), ("y",))


CODEBOOK = Quantization((0.03,), (-100,), levels=(-128, -101, -100, -96, -50, 0, 3, 127))


@pytest.mark.parametrize("activations", [DType.i8, DType.u8])
@pytest.mark.parametrize(
    "quant",
    [CODEBOOK, Quantization.per_tensor(0.07, -3, 6), Quantization.per_tensor(0.3, 2, 4), Quantization.per_tensor(0.0007, 0, 16)],
    ids=["codebook", "6 bits", "4 bits", "16 bits"],
)
def test_quantizers_bit_for_bit(quant: Quantization, activations: DType) -> None:
    """Over the whole range, beyond its ends, and on ties."""
    graph = chain(quant)
    real = np.float32(quant.scale[0]) * (np.arange(-700, 700, dtype=np.float32) / 2)
    feeds = {"x": (real * (1 if quant.bits < 16 else 60)).reshape(2, 700).astype(np.float32)}
    (q,) = (v for v in graph.order if isinstance(v.op, ops.Quantize))
    written = export_qdq(Graph(graph.inputs, (apply(ops.Dequantize(), q, name="y"),), ("y",)), activations)
    (expected,) = evaluate(graph, feeds, [q]).values()
    (actual,) = session(written).run(None, feeds)
    np.testing.assert_array_equal(np.rint(actual / np.float32(quant.scale[0])) + quant.zero_point[0], expected.astype(np.float32))


def test_the_newer_opset_only_for_16_bits() -> None:
    narrow, wide = Quantization.per_tensor(0.02), Quantization.per_tensor(0.001, 0, 16)
    assert opset(export_qdq(chain(narrow, CODEBOOK))) == 20
    assert opset(export_qdq(chain(narrow, wide))) == 21
    kinds = [{str(numpy_helper.to_array(t).dtype) for t in export_qdq(chain(*q)).graph.initializer} for q in ((narrow,), (narrow, wide))]
    assert kinds == [{"float32", "int8"}, {"float32", "uint8", "int16"}]


def test_narrow_weights_are_small_integers() -> None:
    model = export_qdq(made("vit", (4, 4))[0].exchange_graph)
    readers = {i: n for n in model.graph.node for i in n.input[:1] if n.op_type == "DequantizeLinear"}
    weights = [numpy_helper.to_array(t) for t in model.graph.initializer if t.name in readers and len(t.dims) == 4]
    assert sum(int(np.abs(w.astype(int)).max()) <= -ends_of(4)[0] * MOST for w in weights) == len(weights) - 2  # all but the first and the last layer
