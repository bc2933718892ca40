"""Schemes: what is asked of scales holds for every scale of the program, and programs in them are exact and accurate."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from qcompiler.api import build, quantize_model
from qcompiler.errors import UsageError
from qcompiler.ir.ops import Conv, Dequantize
from qcompiler.ir.types import Quantization
from qcompiler.passes.pipeline import Options, Quantized
from qcompiler.passes.quantize_weights import quantize_weights
from qcompiler.passes.scheme import PLAIN, Scheme, is_power_of_two

MODELS = Path(__file__).parents[2] / "models"
SCHEMES = {
    "power-of-two": Scheme(power_of_two=True),
    "symmetric": Scheme(symmetric=True),
    "per-tensor": Scheme(per_channel=False),
    "8-bits-only": Scheme(streams=False),
    "dpu": Scheme(symmetric=True, power_of_two=True, per_channel=False, streams=False),
}


@cache
def digits(part: str) -> dict[str, np.ndarray]:
    return dict(np.load(MODELS / f"digits_{part}.npz"))


def quantizations(graphs: Quantized) -> list[Quantization]:
    return [v.type.quant for v in graphs.qdq_graph.order if v.type.quant is not None]


@pytest.mark.parametrize("name", SCHEMES)
def test_programs_keep_to_their_scheme(name: str) -> None:
    scheme = SCHEMES[name]
    made = quantize_model(MODELS / "digits_resnet.onnx", ({"input": x[None]} for x in digits("calib")["input"][:48]), options=Options(scheme=scheme))
    found = quantizations(made.graphs)
    activations = [q for q in found if q.axis is None and q.bits < 32]
    assert not scheme.power_of_two or all(is_power_of_two(np.array(q.scale)).all() for q in found)
    assert not scheme.symmetric or all(q.zero_point[0] == 0 for q in activations)
    assert scheme.streams or all(q.bits <= 8 for q in activations)
    weights = [v.inputs[1] for v in made.graphs.qdq_graph.order if isinstance(v.op, Conv)]
    assert all(isinstance(w.op, Dequantize) and (w.inputs[0].type.quant.axis is None) != scheme.per_channel for w in weights)  # type: ignore[union-attr]
    program, data = build(made), digits("eval")
    answers = program.run({"input": data["input"]})["logits"]
    np.testing.assert_array_equal(answers[:8], program.reference({"input": data["input"][:8]})["logits"])
    assert (answers.argmax(1) == data["labels"]).mean() > 0.97


def test_products_of_sixteen_bits_are_for_others() -> None:
    with pytest.raises(UsageError, match="expected activations of 8 bits for a compiled program, found 16"):
        quantize_model(MODELS / "digits_resnet.onnx", options=Options(scheme=Scheme(bits=16)))


@pytest.mark.parametrize("scheme", [PLAIN, *SCHEMES.values()], ids=repr)
@pytest.mark.parametrize("bits", [4, 8])
def test_weights_of_every_scheme(scheme: Scheme, bits: int) -> None:
    """Errors are those of their scales, and the bias stays what it was; of a dead channel, too."""
    rng = np.random.default_rng(5)
    w, b = rng.normal(size=(6, 3, 3, 4)) * np.exp(rng.normal(size=(6, 1, 1, 1))), rng.normal(size=6)
    w[2] = 0
    x = Quantization.per_tensor(2.0**-5)
    made = quantize_weights(w, b, x, Quantization.per_tensor(0.25), bits=bits, scheme=scheme)
    assert scheme.per_channel or len(set(made.scale.tolist())) == 1
    assert not scheme.power_of_two or is_power_of_two(made.scale).all()
    error = made.weights * made.scale.reshape(-1, 1, 1, 1) - w
    live = [0, 1, 3, 4, 5]
    assert np.square(error[live]).mean() < np.square(w[live]).mean() * (0.1 if bits == 4 else 4e-3)
    np.testing.assert_allclose(made.bias * made.scale * x.scale[0], b, atol=0.6 * made.scale.max() * x.scale[0])


def test_a_residual_keeps_its_multiplier_among_powers_of_two() -> None:
    w = np.random.default_rng(1).normal(size=(4, 1, 1, 4))
    x, r = Quantization.per_tensor(2.0**-6), Quantization.per_tensor(2.0**-4)
    made = quantize_weights(w, None, x, Quantization.per_tensor(2.0**-3), residual=r, scheme=Scheme(power_of_two=True))
    ratio = r.scale[0] / (x.scale[0] * made.scale)
    assert (ratio == np.rint(ratio)).all()
    assert is_power_of_two(made.scale).all()
