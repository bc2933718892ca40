"""What the network answers when some layers have other weights, by sessions of onnxruntime.

    z(W_1 ... W_L)          W_l any of the forms that layer l may take

Many samples with the same weights have a session of their own, which packs weights once: runs take half the time. Many changes for one sample share
a session whose weights can be overridden, as building one for each would take longer than running it. Runs share nothing, so that each takes one
core (`abreast`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, helper

from qcompiler.frontend.export import export
from qcompiler.ir.graph import Graph, Value, substitute
from qcompiler.ir.interpret import evaluate
from qcompiler.ir.ops import Const, Conv, constant
from qcompiler.passes.abreast import abreast

Array = NDArray[np.floating]
Feeds = Mapping[str, NDArray[np.generic]]
Weights = tuple[Array, Array]
"""Weights [O,kh,kw,C/groups] and biases [O] in float32."""


def weighted_layers(graph: Graph) -> list[Value]:
    """The convolutions of constant weights in execution order."""
    return [v for v in graph.order if isinstance(v.op, Conv) and _is_constant(v.inputs[1])]


def _is_constant(v: Value) -> bool:
    return isinstance(v.op, Const) or (bool(v.inputs) and all(_is_constant(i) for i in v.inputs))


def weights_of(graph: Graph) -> dict[str, Weights]:
    """Weights and biases of every layer by name, as a float or Q/DQ graph computes with them."""
    layers = weighted_layers(graph)
    found = evaluate(Graph((), tuple(i for v in layers for i in v.inputs[1:]), ()), {})
    return {v.name: _pair(v, found) for v in layers}


def _pair(v: Value, found: Mapping[Value, NDArray[np.generic]]) -> Weights:
    w = np.asarray(found[v.inputs[1]], np.float32)
    return w, np.asarray(found[v.inputs[2]], np.float32) if len(v.inputs) > 2 else np.zeros(len(w), np.float32)


class Simulation:
    """A float or Q/DQ graph whose convolutions take their weights at run time; what is not given is as in the graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        open_graph = opened(graph)
        exported = export(open_graph)
        layers = weighted_layers(open_graph)
        self._inputs = {v.name: tuple((exported.names[i], exported.perms[i]) for i in v.inputs[1:]) for v in layers}
        model, parts = exported.model, {name for pair in self._inputs.values() for name, _ in pair}
        model.graph.input.extend(helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer if t.name in parts)
        self._session = _session(model)
        self._outputs = list(graph.output_names)

    def answers(self, samples: Iterable[Feeds], changed: Mapping[str, Weights] | None = None) -> Iterator[Array]:
        """The first output for each sample, with the weights of `changed` layers."""
        session = _session(export(opened(self.graph, changed or {})).model)
        return abreast(partial(self._answer, session), samples)

    def variants(self, sample: Feeds, changes: Iterable[Mapping[str, Weights]]) -> Iterator[Array]:
        """The first output for this sample with the weights of each of `changes`."""
        return abreast(partial(self._answer, self._session), ({**sample, **self._given(changed)} for changed in changes))

    def _given(self, changed: Mapping[str, Weights]) -> dict[str, Array]:
        names = ((name, a) for layer, pair in changed.items() for name, a in zip(self._inputs[layer], pair))
        return {key: np.ascontiguousarray(np.transpose(a, perm)) for (key, perm), a in names}

    def _answer(self, session: ort.InferenceSession, feeds: Feeds) -> Array:
        return np.asarray(session.run(self._outputs[:1], feeds)[0])


def _session(model: ModelProto) -> ort.InferenceSession:
    """onnxruntime on one core, which leaves int8 as it is: on some CPUs it would turn it into uint8, and not all of it."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def opened(graph: Graph, changed: Mapping[str, Weights] = MappingProxyType({})) -> Graph:
    """`graph` with float weights and biases that no two layers share, and those of `changed` layers."""
    found = weights_of(graph) | dict(changed)

    def own(v: Value) -> Value:
        if not isinstance(v.op, Conv) or v.name not in found:
            return v
        w, b = (constant(a, f"{v.name}::{part}") for a, part in zip(found[v.name], ("weights", "bias")))
        return replace(v, inputs=(v.inputs[0], w, b))

    return substitute(graph, own)
