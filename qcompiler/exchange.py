"""Quantized ONNX for other toolchains: a network in the form that a profile asks for, its scales chosen within it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from os import PathLike
from typing import Any

from numpy.typing import NDArray
from onnx import ModelProto

from .api import SYNTHETIC_SAMPLES
from .backends.onnx import export_qdq
from .frontend.export.writer import OPSET
from .frontend.lengths import Shapes, import_forms
from .ir.graph import Graph
from .passes.calibrate import synthetic_batches
from .passes.pipeline import Options, exchange_graph, measured
from .profiles import TargetProfile, profile_named

DEFAULTS = Options()


def export(
    model: str | PathLike[str] | ModelProto,
    profile: str | TargetProfile,
    calibration: Iterable[Mapping[str, NDArray[Any]]] | None = None,
    *,
    stored: str | None = None,
    shapes: Shapes | None = None,
    options: Options = DEFAULTS,
    progress: Callable[[int], None] | None = None,
) -> ModelProto:
    """A float ONNX `model` quantized as `profile` wants it; `stored` is the type of its activations, the profile's first by default.

    Raises UsageError, ModelError or UnsupportedModel, as `compile` does.
    """
    row = profile_named(profile) if isinstance(profile, str) else profile
    graph = import_forms(model, shapes)[0]
    batches = calibration if calibration is not None else synthetic_batches(graph, SYNTHETIC_SAMPLES)
    options = replace(options, scheme=row.scheme(row.stored(stored)))
    return written(exchange_graph(measured(graph, batches, options, progress), options), row, stored)


def written(graph: Graph, profile: TargetProfile, stored: str | None = None) -> ModelProto:
    """A Q/DQ graph of the profile's scheme as ONNX that it reads, no newer than needed."""
    return export_qdq(graph, profile.stored(stored), min(profile.opset, OPSET))
