"""One network in several forms: imported for every one of several shapes of its inputs, as sequence lengths are.

    {"ids": [(1, 64), (1, 128)]}      two forms; an input with one shape has it in all, open dimensions of the same symbol follow along

Forms are ordered from the largest: the first is the one that calibration data has the shapes of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike

import onnx

from qcompiler.errors import UsageError
from qcompiler.ir.graph import Graph

from .importer import import_model
from .inputs import graph_inputs
from .load import load_model

Shape = tuple[int, ...]
Shapes = Mapping[str, "Shape | Sequence[Shape]"]
"""The shape of an input by its name, or one for each form."""


def import_forms(model: str | PathLike[str] | onnx.ModelProto, shapes: Shapes | None = None) -> tuple[Graph, ...]:
    """The network for each of the `shapes`, the largest first."""
    return tuple(import_model(model, form) for form in ordered_forms(model, shapes or {}))


def ordered_forms(model: str | PathLike[str] | onnx.ModelProto, shapes: Shapes) -> list[dict[str, Shape]]:
    """The shapes of each form, the largest first. UsageError where two are the same."""
    forms = each_form(shapes)
    if len(forms) == 1:
        return forms
    graph = load_model(model).graph
    resolved = [{name: t.shape for name, t in graph_inputs(graph, form).items()} for form in forms]
    if twice := [r for n, r in enumerate(resolved) if r in resolved[:n]]:
        raise UsageError(f"--shape gives {_shown(twice[0])} twice; name every shape once")
    graph_sizes = [sum(graph_inputs(graph, form)[name].size for name in r) for form, r in zip(forms, resolved)]
    return [form for _, form in sorted(zip(graph_sizes, forms), key=lambda pair: -pair[0])]


def each_form(shapes: Shapes) -> list[dict[str, Shape]]:
    """One shape of each input for every form."""
    listed = {name: [_dims(given)] if _is_one(given) else [_dims(s) for s in given] for name, given in shapes.items()}
    count = max((len(several) for several in listed.values()), default=1)
    for name, several in listed.items():
        if len(several) not in (1, count):
            raise UsageError(f"input '{name}' has {len(several)} shapes where others have {count}; give each input one, or as many as the others")
    return [{name: several[n % len(several)] for name, several in listed.items()} for n in range(count)]


def _is_one(given: Shape | Sequence[Shape]) -> bool:
    return not given or not isinstance(given[0], Sequence)


def _dims(given: object) -> Shape:
    return tuple(int(d) for d in given)  # type: ignore[attr-defined]


def _shown(shapes: Mapping[str, Shape]) -> str:
    return " ".join(f"{name}={','.join(map(str, shape))}" for name, shape in shapes.items())


def form_names(graphs: Sequence[Graph], prefix: str) -> dict[str, Graph]:
    """The forms by the prefix of their C symbols: <prefix>, or of several <prefix>_ and the extents in which they differ, as in model_64."""
    if len(graphs) == 1:
        return {prefix: graphs[0]}
    columns = dict.fromkeys(zip(*([d for v in g.inputs for d in v.shape] for g in graphs)))
    extents = [c for c in columns if len(set(c)) > 1]
    return {f"{prefix}_{'x'.join(str(c[n]) for c in extents)}": g for n, g in enumerate(graphs)}
