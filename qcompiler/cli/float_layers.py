"""How long layers take in float: ONNX Runtime's own profile of the float network, beside the layers of a compiled program.

A tensor of the network belongs to the layer that computes it, or else to the layer of its first reader. A node of ONNX Runtime's optimized
graph stands for all tensors between its operands and its results. Layers that one node touches are a group, and groups are compared: what is
fused on one side only is added up until both sides mean the same. The profile counts whole microseconds, so groups below some ten of them are
known only roughly.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from qcompiler.errors import ModelError

WARM_UP, RUNS = 3, 20
NCHWC = "_nchwc"
"""Ending of the name of a convolution that ONNX Runtime has rewritten to its blocked layout; before it stands the name of its output."""
ELEMENTWISE = {"Add", "Sum", "Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Mul", "BatchNormalization"}
Layers = Mapping[str, str]
Group = tuple[str, ...]
"""Names of layers, in their order."""


def float_layers(model: str, feeds: Mapping[str, Any], layers: Iterable[str], runs: int = RUNS) -> dict[Group, float]:
    """Milliseconds of groups of the layers of these names on one thread; layers that have no counterpart are left out."""
    names = list(layers)
    with tempfile.TemporaryDirectory() as folder:
        times, nodes = profiled(model, feeds, Path(folder), runs)
    original = list(onnx.load(model, load_external_data=False).graph.node)
    touched = node_layers(nodes, original, tensor_owners(original, aliases(names)))
    forms = {x: frozenset(y for y in names if base(y, names) == base(x, names)) for x in names}
    return grouped(names, {n: frozenset[str]().union(*(forms[x] for x in touched[n])) for n in times if n in touched}, times)


def grouped(layers: Sequence[str], touched: Mapping[str, frozenset[str]], times: Mapping[str, float]) -> dict[Group, float]:
    """The least groups of layers such that every node's are in one, and the sum of its nodes' times."""
    groups = list[set[str]]()
    for several in touched.values():
        joined = [g for g in groups if g & several]
        groups = [g for g in groups if not g & several] + [set(several).union(*joined)]
    return {tuple(x for x in layers if x in g): sum(times[n] for n, several in touched.items() if several & g) for g in groups}


def profiled(model: str, feeds: Mapping[str, Any], folder: Path, runs: int) -> tuple[dict[str, float], list[Any]]:
    """(milliseconds by node name, the nodes of the optimized graph)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level, options.enable_profiling = 1, 3, True
    options.profile_file_prefix, options.optimized_model_filepath = str(folder / "profile"), str(folder / "optimized.onnx")
    try:
        session = onnxruntime.InferenceSession(named(model), options, providers=["CPUExecutionProvider"])
    except Exception as problem:  # onnxruntime raises classes of its own for whatever is wrong
        raise ModelError(f"onnxruntime cannot open '{model}': {str(problem).splitlines()[0]}") from problem
    for _ in range(WARM_UP + runs):
        session.run(None, dict(feeds))
    events = json.loads(Path(session.end_profiling()).read_text())
    return times_of(events), list(onnx.load(folder / "optimized.onnx").graph.node)


def named(model: str) -> bytes:
    """The model, every node with a name of its own."""
    proto = onnx.load(model)
    for i, node in enumerate(proto.graph.node):
        node.name = f"{i}:{node.name}"
    content: bytes = proto.SerializeToString()
    return content


def times_of(events: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Milliseconds of each node: mean of the faster three quarters of its runs, the first left out."""
    ending, found = "_kernel_time", dict[str, list[float]]()
    for e in events:
        if e.get("cat") == "Node" and e["name"].endswith(ending):
            found.setdefault(e["name"].removesuffix(ending), []).append(e["dur"] / 1e3)
    return {name: float(np.mean(sorted(t[WARM_UP:])[: max(1, (len(t) - WARM_UP) * 3 // 4)])) for name, t in found.items()}


def aliases(layers: Iterable[str]) -> dict[str, str]:
    """Names of tensors -> names of layers: its own, and the tensor's whose part or form a layer computes ("x/conv" or "x.fine" of "x")."""
    names = list(layers)
    parents = {name.rpartition(mark)[0]: name for mark in "./" for name in names if mark in name}
    return parents | {name: name for name in names}


def base(layer: str, layers: Sequence[str]) -> str:
    """Layers that store forms of one tensor ("x.fine" beside "x") are one to the float network."""
    return layer.rpartition(".")[0] if layer.rpartition(".")[0] in layers else layer


def tensor_owners(nodes: Iterable[Any], layers: Layers) -> dict[str, str]:
    """Tensor -> layer."""
    owners = dict(layers)
    for n in reversed(list(nodes)):
        following = next((owners[name] for name in n.output if name in owners), None)
        for name in n.input:
            if following is not None and name not in layers:
                owners[name] = following
    return owners


def node_owners(nodes: Iterable[Any], tensors: Mapping[str, str]) -> dict[str, str]:
    """Node of the optimized graph -> layer: that of a tensor it computes, else that of what reads its output."""
    known, owners = dict(tensors), dict[str, str]()
    for n in reversed(list(nodes)):
        layer = next((known[name] for name in (n.name.removesuffix(NCHWC), *n.output) if name in known), None)
        if layer is not None:
            owners[n.name] = layer
            known |= {name: layer for name in n.input if name not in known}
    return owners


def node_layers(nodes: Sequence[Any], original: Sequence[Any], owners: Layers) -> dict[str, frozenset[str]]:
    """Node of the optimized graph -> the layers of all tensors between its operands and its results; else the layer of what reads its output."""
    producers = {name: n for n in computing(original) for name in n.output}
    results, following = known_results(nodes, producers), node_owners(nodes, owners)
    sources, found = origins(nodes, results, producers), dict[str, frozenset[str]]()
    for n in nodes:
        given = frozenset[str]().union(*(sources.get(name, {name}) for name in n.input))
        before = {owners[name] for name in given if name in owners and name in producers}
        reached = given | {name for name, layer in owners.items() if layer in before}
        inner = frozenset(owners[name] for name in between(results[n.name], reached, producers) if name in owners)
        if layers := inner or frozenset([following[n.name]] if n.name in following else []):
            found[n.name] = layers
    return found


def computing(original: Iterable[Any]) -> list[Any]:
    """The nodes that are not constants, which several layers may share."""
    return [n for n in original if n.op_type != "Constant"]


def known_results(nodes: Sequence[Any], producers: Mapping[str, Any]) -> dict[str, list[str]]:
    """What each optimized node computes, as the network calls it. A fused node bears the name of its convolution: what is done to each element
    afterwards, and by no node of its own, is its result too; the sum of two convolutions that of the one computed last."""
    named = {n.name: [name for name in (n.name.removesuffix(NCHWC), *n.output) if name in producers] for n in nodes}
    readers: dict[str, list[Any]] = {}
    for n in producers.values():
        for name in n.input:
            readers.setdefault(name, []).append(n)
    taken = {name for several in named.values() for name in several}
    for n in reversed(nodes):
        tail = named[n.name][-1:]
        while tail and len(after := readers.get(tail[0], [])) == 1 and after[0].op_type in ELEMENTWISE and not taken & set(after[0].output):
            tail = list(after[0].output)
            taken |= set(tail)
        named[n.name] = tail
    return named


def origins(nodes: Iterable[Any], results: Mapping[str, list[str]], producers: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    """Tensor of the optimized graph that the network does not have -> those of the network that it is made from."""
    found = dict[str, frozenset[str]]()
    for n in nodes:
        own = frozenset(results[n.name]) or frozenset[str]().union(*(found.get(name, {name}) for name in n.input))
        found |= {name: own for name in n.output if name not in producers}
    return found


def between(results: Iterable[str], given: frozenset[str], producers: Mapping[str, Any]) -> set[str]:
    """All tensors that lead to `results`, up to those `given`."""
    found, pending = set[str](), list(results)
    while pending:
        name = pending.pop()
        if name in producers and name not in given and name not in found:
            found.add(name)
            pending.extend(producers[name].input)
    return found
