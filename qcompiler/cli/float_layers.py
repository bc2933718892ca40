"""How long each layer takes in float: ONNX Runtime's own profile of the float network, assigned to the layers of a compiled program.

A tensor of the network belongs to the layer that computes it, or else to the layer of its first reader; a node of ONNX Runtime's optimized
graph to the layer of its output. Its profile counts whole microseconds, so layers below some ten of them are known only roughly.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from qcompiler.errors import ModelError

WARM_UP, RUNS = 3, 20
NCHWC = "_nchwc"
"""Ending of the name of a convolution that ONNX Runtime has rewritten to its blocked layout; before it stands the name of its output."""
Layers = Mapping[str, str]


def float_layers(model: str, feeds: Mapping[str, Any], layers: Iterable[str], runs: int = RUNS) -> dict[str, float]:
    """Milliseconds of the layers of these names on one thread; layers that have no counterpart are left out."""
    with tempfile.TemporaryDirectory() as folder:
        times, nodes = profiled(model, feeds, Path(folder), runs)
    tensors = tensor_owners(onnx.load(model).graph.node, aliases(layers))
    owners = node_owners(nodes, tensors)
    total: dict[str, float] = {}
    for node, milliseconds in times.items():
        if (layer := owners.get(node)) is not None:
            total[layer] = total.get(layer, 0.0) + milliseconds
    return total


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
    """Names of tensors -> names of layers: its own, and the tensor's whose part a layer computes ("x/conv" of "x")."""
    names = list(layers)
    parents = {name.rpartition("/")[0]: name for name in names if "/" in name}
    return parents | {name: name for name in names}


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
