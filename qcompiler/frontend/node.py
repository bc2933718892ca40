"""What an importer sees of one ONNX node: its operands as IR values, its checked attributes, and ways to emit IR.

Everything emitted is typed and, where all operands are constant, folded on the spot: shapes computed by `Shape`, `Gather`
and `Concat`, weights stored as fp16 behind a `Cast`, generated weights are plain constants when their user is imported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from qcompiler.frontend.fold import folded, known_array, limited
from qcompiler.ir.graph import Value, apply
from qcompiler.ir.ops import Cast, Const, Op, Transpose, constant
from qcompiler.ir.types import DType

Importer = Callable[..., "Value | Sequence[Value]"]
"""``importer(node, *operands)``: the results of an ONNX node; an operand left out by the model is None."""


class Unsupported(Exception):
    """What an importer raises for a valid node that it cannot express; the reason completes "<Op> '<name>' ..."."""


class Importers(dict[str, Importer]):
    """The importers of one family of operators, by ONNX operator name."""

    def register(self, *names: str) -> Callable[[Importer], Importer]:
        """A decorator that enters a function under one or more operator names."""

        def enter(importer: Importer) -> Importer:
            self.update(dict.fromkeys(names, importer))
            return importer

        return enter


def numpy_dtype(onnx_type: int) -> DType:
    """The element type of an ONNX `TensorProto.DataType`; raises Unsupported for strings, complex, bfloat16, float8 ..."""
    names = onnx.TensorProto.DataType
    try:
        name = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(onnx_type)).name
        return DType(name)
    except (KeyError, ValueError, TypeError):
        known = names.Name(onnx_type) if onnx_type in names.values() else str(onnx_type)
        raise Unsupported(f"has element type {known}; supported are {', '.join(t.value for t in DType)}") from None


@dataclass(frozen=True)
class Node:
    """One ONNX node during import. `attributes` holds given values and the schema's defaults of this `opset`."""

    op: str
    name: str
    opset: int
    attributes: Mapping[str, Any]
    outputs: tuple[str, ...]
    _names: Counter[str] = field(default_factory=Counter)

    # --- attributes ---

    def number(self, name: str) -> float:
        """A float attribute."""
        return float(self.attributes[name])

    def integer(self, name: str) -> int:
        """An integer attribute."""
        return int(self.attributes[name])

    def text(self, name: str) -> str:
        """A string attribute."""
        return bytes(self.attributes[name]).decode("utf-8", "replace")

    def integers(self, name: str) -> tuple[int, ...] | None:
        """A list of integers, or None where it is not given."""
        given = self.attributes.get(name)
        return None if given is None else tuple(int(i) for i in given)

    def choice(self, name: str, *choices: str) -> str:
        """A string attribute that must be one of `choices`."""
        value = self.text(name)
        if value not in choices:
            raise Unsupported(f"has {name} {value!r}; supported are {', '.join(choices)}")
        return value

    # --- operands ---

    def static(self, v: Value, role: str) -> NDArray[Any]:
        """The array of an operand that must be known at compile time."""
        data = known_array(v)
        if data is None:
            raise Unsupported(f"has {role} '{v.name}' computed at run time; it must be a constant")
        return data

    def static_integers(self, v: Value, role: str) -> tuple[int, ...]:
        """A constant list of integers."""
        return tuple(int(i) for i in self.static(v, role).reshape(-1))

    def axis(self, rank: int, axis: int | None = None, name: str = "axis") -> int:
        """The axis (default: the attribute `name`) counted from the front; ValueError where it is out of range."""
        given = self.integer(name) if axis is None else axis
        if not -rank <= given < max(rank, 1):
            raise ValueError(f"{name} {given} is out of range for {rank} dimensions")
        return given % max(rank, 1)

    # --- emitting ---

    def emit(self, op: Op, *operands: Value) -> Value:
        """`op` applied to `operands`: typed, and folded where constant. ValueError for a result of absurd size."""
        return folded(limited(apply(op, *operands, name=self._name(op))))

    def constant(self, data: Any, like: Value | None = None) -> Value:
        """A constant; with `like`, of that value's element type."""
        array = np.asarray(data, None if like is None else like.type.dtype.numpy)
        return constant(array, self._name(Const(array)))

    def cast(self, v: Value, dtype: DType) -> Value:
        """`v` in another element type."""
        return v if v.type.dtype is dtype else self.emit(Cast(dtype), v)

    def channels_last(self, v: Value) -> Value:
        """[N, C, ...] to [N, ..., C]."""
        return self.emit(Transpose((0, *range(2, v.type.rank), 1)), v) if v.type.rank > 2 else v

    def channels_first(self, v: Value) -> Value:
        """[N, ..., C] to [N, C, ...]."""
        rank = v.type.rank
        return self.emit(Transpose((0, rank - 1, *range(1, rank - 1))), v) if rank > 2 else v

    def _name(self, op: Op) -> str:
        base = f"{self.outputs[0]}/{op.__class__.__name__.lower()}"
        self._names[base] += 1
        count = self._names[base]
        return base if count == 1 else f"{base}.{count}"
