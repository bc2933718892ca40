"""bench --layers: times by layer, and ONNX Runtime's profile assigned to them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import Run

from qcompiler.cli.float_layers import aliases, base, float_layers, grouped, named, node_layers, node_owners, tensor_owners, times_of


def node(kind: str, inputs: str, outputs: str, name: str = "") -> onnx.NodeProto:
    return onnx.helper.make_node(kind, inputs.split(), outputs.split(), name=name or f"{kind} {outputs}")


def test_bench_layers(run: Run, artifact: Path, network: Path) -> None:
    facts = json.loads(run("bench", artifact, network, "--layers", "--seconds", 0.02, "--json").stdout)
    convolutions = [x for x in facts["layers"] if x["operator"].startswith("IntConv")]
    compared = {name for x in facts["comparisons"] for name in x["layers"]}
    assert {x["name"] for x in convolutions} <= compared
    assert all(x["kept"] == (x["milliseconds"] <= x["float_milliseconds"]) for x in facts["comparisons"])
    assert facts["peak_gops"] > 0
    text = run("bench", artifact, "--layers", "--seconds", 0.02).stdout
    assert "IntConv 3x3" in text
    assert "peak of this CPU" in text
    assert "slower than float" not in text, "there was nothing to compare with"


def test_every_node_of_the_float_network_belongs_to_a_layer(network: Path, artifact: Path, run: Run) -> None:
    layers = [x["name"] for x in json.loads(run("inspect", artifact, "--json").stdout)["report"]["layers"]]
    feeds = {"input": np.zeros((1, 1, 8, 8), np.float32)}
    found = float_layers(str(network), feeds, layers, runs=2)
    convolutions = [n.output[0] for n in onnx.load(network).graph.node if n.op_type == "Conv"]
    named_there = [name for group in found for name in group]
    assert set(named_there) <= set(layers)
    assert len(named_there) == len(set(named_there)) >= len(convolutions)


def test_tensors_go_to_the_layer_of_their_first_reader() -> None:
    nodes = [node("Conv", "x w", "c"), node("Add", "c x", "a"), node("Relu", "a", "r"), node("Conv", "r v", "d"), node("Relu", "d", "y")]
    owners = tensor_owners(nodes, {"r": "r", "y": "y"})
    assert {t: owners[t] for t in ("c", "a", "r", "d", "y")} == {"c": "r", "a": "r", "r": "r", "d": "y", "y": "y"}


def test_nodes_of_the_optimized_graph() -> None:
    tensors = {"c": "r", "r": "r", "y": "y"}
    nodes = [
        node("ReorderInput", "x", "x1"),
        node("Conv", "x1 w", "token", name="c_nchwc"),
        node("Conv", "token v", "y"),
        node("Foo", "q", "unknown"),
    ]
    assert node_owners(nodes, tensors) == {"ReorderInput x1": "r", "c_nchwc": "r", "Conv y": "y"}


ORIGINAL = [
    node("Conv", "x w", "c"),
    node("Relu", "c", "r"),
    node("Conv", "r v", "d"),
    node("Add", "d x", "a"),
    node("Relu", "a", "y"),
    node("Conv", "a u", "z"),
]


@pytest.mark.parametrize(
    ("nodes", "layers", "expected"),
    [
        ([node("Fused", "x w", "r"), node("Fused", "r v x", "y")], "r y", {"Fused r": "r", "Fused y": "y"}),
        ([node("Conv", "x w", "c"), node("Relu", "c", "r"), node("Fused", "r v x", "y")], "r y", {"Conv c": "r", "Relu r": "r", "Fused y": "y"}),
        ([node("Fused", "x w", "r"), node("Fused", "r v x", "y")], "r d y", {"Fused r": "r", "Fused y": "d y"}),
        ([node("Fused", "x w v", "y")], "r y", {"Fused y": "r y"}),
        (
            [node("ReorderInput", "x", "x1"), node("Conv", "x1 w", "t", name="c_nchwc"), node("Conv", "t v", "u", name="y_nchwc")],
            "r y",
            {"ReorderInput x1": "r", "c_nchwc": "r", "y_nchwc": "y"},
        ),
        (
            [node("Conv", "x w", "r"), node("Conv", "r v x", "t", name="d_nchwc"), node("Conv", "t u", "z")],
            "r a y z",
            {"Conv r": "r", "d_nchwc": "a", "Conv z": "z"},
        ),
    ],
)
def test_a_node_stands_for_all_between_its_operands_and_its_results(nodes, layers: str, expected: dict[str, str]) -> None:
    owners = tensor_owners(ORIGINAL, {name: name for name in layers.split()})
    assert node_layers(nodes, ORIGINAL, owners) == {name: frozenset(several.split()) for name, several in expected.items()}


def test_groups_are_the_least_that_both_sides_share() -> None:
    touched = {"A": frozenset("ab"), "B": frozenset("c"), "C": frozenset("d"), "D": frozenset("bd")}
    assert grouped("abcde", touched, {"A": 1.0, "B": 2.0, "C": 4.0, "D": 8.0}) == {("c",): 2.0, ("a", "b", "d"): 13.0}


def test_parts_of_a_tensor_stand_for_it() -> None:
    assert aliases(["/a/b/conv", "/c"]) == {"/a/b": "/a/b/conv", "": "/c", "/a/b/conv": "/a/b/conv", "/c": "/c"}
    assert aliases(["x.fine"])["x"] == "x.fine"
    assert [base(name, ["x", "x.fine", "y.1"]) for name in ("x", "x.fine", "y.1")] == ["x", "x", "y.1"]


def test_times_leave_out_the_first_runs_and_the_slowest() -> None:
    def events(*durations: int) -> list[dict[str, object]]:
        return [{"cat": "Node", "name": "n_kernel_time", "dur": d} for d in durations] + [{"cat": "Session", "name": "n_kernel_time", "dur": 1e9}]

    assert times_of(events(900, 900, 900, 10, 20, 30, 5000)) == {"n": pytest.approx(0.02)}


def test_nodes_get_names(network: Path) -> None:
    names = [n.name for n in onnx.load_model_from_string(named(str(network))).graph.node]
    assert len(names) == len(set(names))
    assert all(names)
