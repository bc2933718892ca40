"""The operator tests of the onnx package, as cases for the importer and the float interpreter."""

from __future__ import annotations

import warnings
from enum import Enum
from functools import cache
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from qcompiler.errors import QCompilerError, UnsupportedModel
from qcompiler.frontend import import_model
from qcompiler.frontend.table import IMPORTERS
from qcompiler.ir.interpret import evaluate


@cache
def all_tests() -> tuple[Any, ...]:
    """All operator tests; generating them warns of overflows that they mean."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        return tuple(collect_testcases(None))


def imported_tests() -> list[Any]:
    """The tests whose model consists of imported operators only."""
    return [t for t in all_tests() if all(n.domain in ("", "ai.onnx") and n.op_type in IMPORTERS for n in t.model.graph.node)]


def name_of(test: Any) -> str:
    """The name without what all have in common."""
    return str(test.name.removeprefix("test_"))


class Variant(Enum):
    """Which operands of the test are fed; the others are initializers of the model, numbered from this one on."""

    fed = None
    parameters_constant = 1
    all_constant = 0

    def excuses(self, error: QCompilerError) -> bool:
        """Whether a refusal is what this variant must expect: shapes from run-time data, or constants that are no numbers."""
        if isinstance(error, UnsupportedModel):
            return self is not Variant.all_constant and all("computed at run time" in p for p in error.problems)
        return self is not Variant.fed and ("holds NaN" in str(error) or "hold infinity" in str(error))


def check(test: Any) -> None:
    """Import the test's model and compare with each of its data sets: all operands fed, then parameters constant, then all constant."""
    for variant in Variant:
        try:
            check_variant(test, variant)
        except QCompilerError as error:
            if not variant.excuses(error):
                raise


def check_variant(test: Any, variant: Variant) -> None:
    """Import, run and compare one variant."""
    for operands, expected in (map(_arrays, data) for data in test.data_sets):
        graph = import_model(with_initializers(test.model, operands, variant.value))
        feeds = dict(zip((i.name for i in test.model.graph.input), operands))
        results = evaluate(graph, feeds)
        assert len(graph.outputs) == len(expected)
        for v, wanted in zip(graph.outputs, expected):
            _compare(results[v], _in_storage(np.asarray(wanted), v.type.quant is not None), test)


def with_initializers(model: onnx.ModelProto, operands: list[np.ndarray], first: int | None) -> onnx.ModelProto:
    """The model with its operands from number `first` on stored in it."""
    stored = onnx.ModelProto()
    stored.CopyFrom(model)
    if first is not None:
        stored.graph.initializer.extend(numpy_helper.from_array(a, i.name) for i, a in list(zip(model.graph.input, operands))[first:])
    return stored


def _arrays(data: list[Any]) -> list[np.ndarray]:
    return [numpy_helper.to_array(a) if isinstance(a, onnx.TensorProto) else np.asarray(a) for a in data]


def _in_storage(wanted: np.ndarray, quantized: bool) -> np.ndarray:
    """Unsigned quantized results are kept as signed integers, half their range less."""
    if not quantized or wanted.dtype.kind != "u":
        return wanted
    half = 1 << (8 * wanted.dtype.itemsize - 1)
    return (wanted.astype(np.int64) - half).astype(wanted.dtype.name[1:])


def _compare(found: np.ndarray, wanted: np.ndarray, test: Any) -> None:
    assert found.dtype == wanted.dtype
    assert found.shape == wanted.shape
    if wanted.dtype.kind == "f":
        np.testing.assert_allclose(found, wanted, rtol=test.rtol, atol=test.atol)
    else:
        np.testing.assert_array_equal(found, wanted)
