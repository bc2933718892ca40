"""The float network, run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import ModelError, UsageError

from .data import Input

Array = NDArray[Any]


@dataclass(frozen=True)
class FloatModel:
    """A session whose inputs are those of the compiled program."""

    session: Any
    names: tuple[str, ...]
    integers: Mapping[str, str] = field(default_factory=dict)
    """Element types of the inputs that are integers."""

    @classmethod
    def open(cls, model: str | bytes, inputs: list[Input], threads: int = 0) -> FloatModel:
        """The network in the file (or bytes) `model`; `threads` 0 leaves their number to ONNX Runtime."""
        session = session_of(model, threads)
        found, wanted = {i.name for i in session.get_inputs()}, {i.name for i in inputs}
        if found != wanted:
            raise UsageError(f"the float network takes {sorted(found)}, the compiled program {sorted(wanted)}; name the network that was compiled")
        shapes = {i.name: tuple(i.shape) for i in session.get_inputs()}
        for i in inputs:
            if not fits(shapes[i.name], i.shape):
                both = f"the float network takes '{i.name}' of shape {list(shapes[i.name])}, the compiled program {list(i.shape)}"
                raise UsageError(f"{both}; name the network that was compiled")
        integers = {i.name: i.dtype for i in inputs if np.dtype(i.dtype).kind in "iu"}
        return cls(session, tuple(o.name for o in session.get_outputs()), integers)

    def run(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """Outputs by name; integers of another width are converted."""
        given = {name: np.asarray(a, self.integers.get(name)) for name, a in feeds.items()}
        return dict(zip(self.names, (np.asarray(a) for a in self.session.run(None, given))))


def fits(declared: tuple[int | str | None, ...], shape: tuple[int, ...]) -> bool:
    """Whether an input declared so, free dimensions by name, takes `shape`."""
    return len(declared) == len(shape) and all(d == s or not isinstance(d, int) or d < 1 for d, s in zip(declared, shape))


def session_of(model: str | bytes, threads: int) -> Any:
    """An ONNX Runtime session that prints no warnings."""
    import onnxruntime

    if isinstance(model, str) and not Path(model).is_file():
        raise UsageError(f"expected the file of the float network, found no file '{model}'")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as problem:  # onnxruntime raises classes of its own for whatever is wrong
        name = f"'{model}'" if isinstance(model, str) else "the exported network"
        raise ModelError(f"onnxruntime cannot open {name}: {str(problem).splitlines()[0]}") from problem
