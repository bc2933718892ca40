"""Calibration batches: checked against the graph's inputs, cut into single samples, or invented where there are none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import UsageError
from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.types import DType
from qcompiler.passes.index_ranges import INDICES, indexed_rows, out_of_range

Feeds = Mapping[str, NDArray[np.generic]]


def samples(graph: Graph, batch: Feeds) -> Iterator[dict[str, NDArray[np.generic]]]:
    """The samples of one batch, each with exactly the shapes and element types that `graph` declares.

    The leading dimension of a batch may be any multiple of the graph's. Raises UsageError naming the input where
    names, shapes, element types or values do not fit.
    """
    _check_names(graph, batch)
    arrays = {v.name: checked(v, batch[v.name]) for v in graph.inputs}
    for v in graph.inputs:
        if problem := out_of_range(graph, v, arrays[v.name]):
            raise UsageError(f"calibration input '{v.name}': {problem}. Give it the model's own tokens, or a mask of zeros and ones.")
    counts = {v.name: _repetitions(v, arrays[v.name]) for v in graph.inputs}
    if len(set(counts.values())) > 1:
        raise UsageError(f"calibration batch: inputs hold different numbers of samples: {counts}. Feed as many of each.")
    for i in range(next(iter(counts.values()), 0)):
        yield {v.name: _sample(v, arrays[v.name], i) for v in graph.inputs}


def _check_names(graph: Graph, batch: Feeds) -> None:
    if not isinstance(batch, Mapping):
        raise UsageError(f"calibration batch: expected a mapping from input name to array, found {type(batch).__name__}. Yield dicts.")
    expected, found = sorted(v.name for v in graph.inputs), sorted(map(str, batch))
    if expected != found:
        raise UsageError(f"calibration batch: expected the inputs {expected}, found {found}. Name the arrays as the model names its inputs.")


def checked(v: Value, data: NDArray[np.generic]) -> NDArray[np.generic]:
    """`data` as the element type of the graph input `v`; UsageError where its kind, shape or values do not fit."""
    array = np.asarray(data)
    _check_shape(v, array)
    _check_kind(v, array)
    if array.dtype.kind == "f":
        _check_finite(v, array)
    else:
        _check_width(v, array)
    return np.ascontiguousarray(array, v.type.dtype.numpy)


def _check_shape(v: Value, array: NDArray[np.generic]) -> None:
    expected = v.shape
    fits = array.ndim == len(expected) and array.shape[1:] == expected[1:]
    fits &= not expected or (array.shape[0] > 0 and array.shape[0] % expected[0] == 0)
    if not fits:
        batched = f"{expected}, or a leading dimension that is a multiple of {expected[0]}" if expected else "()"
        missing = " Add the leading batch dimension: x[None]." if array.shape == expected[1:] else " Preprocess it to the shape of the model."
        raise UsageError(f"calibration input '{v.name}': expected shape {batched}, found {array.shape}.{missing}")


def _check_kind(v: Value, array: NDArray[np.generic]) -> None:
    """Floats for floats, integers for integers, booleans for booleans; the width is converted."""
    expected = v.type.dtype.numpy
    kinds = {"u": "iu", "i": "iu"}.get(expected.kind, expected.kind)
    if array.dtype.kind not in kinds:
        remedy = "Apply the model's preprocessing, convert" if expected.kind == "f" else "Convert"
        remedy += f" with x.astype(numpy.{expected})"
        raise UsageError(f"calibration input '{v.name}': expected elements of type {expected}, found {array.dtype}. {remedy}.")


def _check_finite(v: Value, array: NDArray[np.generic]) -> None:
    if not np.isfinite(array).all():
        at = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        remedy = "Remove this sample or mend its preprocessing."
        raise UsageError(f"calibration input '{v.name}': expected finite numbers, found {array[at]} at {at}. {remedy}")


def _check_width(v: Value, array: NDArray[np.generic]) -> None:
    """Integers of another width must be the same numbers in that of the graph."""
    dtype = v.type.dtype.numpy
    if dtype.kind in "iu" and array.dtype.kind in "iu" and array.size and not np.can_cast(array.dtype, dtype):
        least, greatest, bounds = int(np.min(array)), int(np.max(array)), np.iinfo(dtype)
        if least < bounds.min or greatest > bounds.max:
            raise UsageError(f"calibration input '{v.name}': expected {dtype}, found {array.dtype} in [{least}, {greatest}], which does not fit.")


def _repetitions(v: Value, array: NDArray[np.generic]) -> int:
    return array.shape[0] // v.shape[0] if v.shape else 1


def _sample(v: Value, array: NDArray[np.generic], i: int) -> NDArray[np.generic]:
    return array[i * v.shape[0] : (i + 1) * v.shape[0]] if v.shape else array


def synthetic_batches(graph: Graph, count: int, seed: int = 0) -> Iterator[dict[str, NDArray[np.generic]]]:
    """`count` invented samples, always the same for one seed: standard normal floats, random rows of tables, and masks that hide nothing."""
    generator = np.random.default_rng(seed)
    for _ in range(count):
        yield {v.name: _invented(v, graph, generator) for v in graph.inputs}


def _invented(v: Value, graph: Graph, generator: np.random.Generator) -> NDArray[np.generic]:
    dtype = v.type.dtype
    if dtype.is_float:
        return generator.standard_normal(v.shape).astype(dtype.numpy)
    if rows := indexed_rows(graph, v):
        return generator.integers(0, rows, v.shape).astype(dtype.numpy)
    if dtype in (*INDICES, DType.bool):
        return np.ones(v.shape, dtype.numpy)
    return generator.integers(0, 128, v.shape).astype(dtype.numpy)
