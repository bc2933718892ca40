"""eval, verify, bench, inspect and targets."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree

import numpy as np
import onnx
import pytest
from command_line import Run, failed
from PIL import Image

from qcompiler.backends.llvm.target import TARGETS
from qcompiler.cli import trace
from qcompiler.cli.artifact import open_graph, open_manifest
from qcompiler.ir.graph import Graph, substitute
from qcompiler.ir.integer import IntConv
from qcompiler.ir.ops import Const, constant
from qcompiler.ir.serialize import graph_to_bytes
from qcompiler.runtime.artifact import digest

# --- eval -------------------------------------------------------------------------------------------------------------


def test_eval_beside_the_float_network(run: Run, artifact: Path, evaluation: Path, network: Path) -> None:
    result = run("eval", artifact, "--data", evaluation, "--labels", "labels", "--model", network, "--json")
    facts = json.loads(result.stdout)
    assert facts["samples"] == 500
    assert facts["float_top1"] == 99.4
    assert abs(facts["drop"]) <= 0.4
    assert facts["drop"] == pytest.approx(facts["float_top1"] - facts["top1"])
    assert facts["agreement"] > 99
    assert facts["sqnr"]["logits"] > 25


def test_eval_knows_what_was_compiled(run: Run, artifact: Path, evaluation: Path, network: Path) -> None:
    assert json.loads((artifact / "manifest.json").read_text())["report"]["source"] == str(network)
    facts = json.loads(run("eval", artifact, "--data", evaluation, "--labels", "labels", "--limit", 20, "--json").stdout)
    assert facts["float_top1"] is not None


def test_eval_for_people(run: Run, artifact: Path, evaluation: Path, network: Path) -> None:
    result = run("eval", artifact, "--data", evaluation, "--labels", "labels", "--model", network, "--limit", 50)
    assert result.exit_code == 0
    assert "on 50 samples" in result.stdout
    assert "signal to quantization noise" in result.stdout


def test_eval_without_labels(run: Run, artifact: Path, evaluation: Path, network: Path) -> None:
    result = run("eval", artifact, "--data", evaluation, "--model", network, "--limit", 20, "--json")
    facts = json.loads(result.stdout)
    assert facts["top1"] is None
    assert facts["sqnr"]["logits"] > 25


def test_eval_counts_wrong_labels(run: Run, artifact: Path, evaluation: Path, network: Path, tmp_path: Path) -> None:
    data = np.load(evaluation)
    np.savez(tmp_path / "e.npz", input=data["input"], y=(data["labels"] + 1) % 10)
    facts = json.loads(run("eval", artifact, "--data", tmp_path / "e.npz", "--labels", "y", "--model", network, "--json").stdout)
    assert facts["top1"] < 1
    assert facts["float_top1"] < 1


def test_eval_on_class_folders(run: Run, artifact: Path, evaluation: Path, network: Path, tmp_path: Path) -> None:
    data = np.load(evaluation)
    for i, (image, label) in enumerate(zip(data["input"][:60], data["labels"])):
        (tmp_path / str(label)).mkdir(exist_ok=True)
        Image.fromarray(np.rint(image[0] * 240).astype(np.uint8)).save(tmp_path / str(label) / f"{i}.png")
    facts = json.loads(run("eval", artifact, "--data", tmp_path, "--labels", "folders", "--scale", 1 / 240, "--model", network, "--json").stdout)
    assert facts["samples"] == 60
    assert facts["top1"] > 95


def test_eval_exit_code_tells_of_a_fall(run: Run, artifact: Path, evaluation: Path, network: Path) -> None:
    arguments = ("eval", artifact, "--data", evaluation, "--labels", "labels", "--model", network, "--limit", 50)
    assert run(*arguments, "--max-drop", 5).exit_code == 0
    assert run(*arguments, "--max-drop", -100).exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "accuracy needs data: name it with --data"),
        (["--data", "DATA", "--labels", "digits"], "has no labels 'digits', found 'input', 'labels'"),
        (["--data", "DATA", "--model", "nowhere.onnx"], "found no file 'nowhere.onnx'"),
        (["--data", "DATA", "--output", "boxes"], "no output is called 'boxes'; expected one of logits"),
    ],
)
def test_eval_wrong_use(run: Run, artifact: Path, evaluation: Path, arguments: list[str], expected: str) -> None:
    result = run("eval", artifact, *(evaluation if a == "DATA" else a for a in arguments))
    assert result.exit_code in (2, 3)
    assert expected in result.stderr


def test_network_in_place_of_an_artifact(run: Run, network: Path, tmp_path: Path) -> None:
    for command in ("eval", "verify", "bench", "inspect"):
        assert "compile it first" in failed(run(command, network), 2)
        assert "make one with qcompile" in failed(run(command, tmp_path), 2)


# --- verify -----------------------------------------------------------------------------------------------------------


def checks(run: Run, *arguments: object) -> tuple[int, dict[str, dict[str, object]]]:
    result = run("verify", *arguments, "--json")
    return result.exit_code, {c["question"]: c for c in json.loads(result.stdout)["checks"]}


def test_verify(run: Run, artifact: Path, evaluation: Path) -> None:
    code, found = checks(run, artifact, "--data", evaluation, "--limit", 30)
    assert code == 0
    assert list(found) == ["whole", "integer-only", "no overflow", "bit-exact"]
    assert all(c["passed"] is True for c in found.values()), found
    assert "30 samples" in str(found["bit-exact"]["detail"])


@pytest.mark.parametrize("target", ["arm64", "arm64-dotprod", "x86-64"])
def test_verify_on_other_targets(run: Run, network: Path, calib: Path, tmp_path: Path, target: str) -> None:
    run(network, "--calib", calib, "--limit", 20, "--target", target, "-o", tmp_path / "a")
    code, found = checks(run, tmp_path / "a")
    assert code == 0
    assert found["bit-exact"]["passed"] is True


def test_verify_says_what_it_cannot_know(run: Run, network: Path, tmp_path: Path) -> None:
    run(network, "--target", "arm64", "--os", "windows", "-o", tmp_path / "a")
    code, found = checks(run, tmp_path / "a")
    assert code == 0
    assert found["whole"]["passed"] is found["no overflow"]["passed"] is True
    assert found["integer-only"]["passed"] is found["bit-exact"]["passed"] is None


def test_verify_finds_damage(run: Run, artifact: Path, tmp_path: Path) -> None:
    copytree(artifact, tmp_path / "a")
    image = tmp_path / "a" / "model.img"
    image.write_bytes(image.read_bytes()[:-1] + b"\x55")
    code, found = checks(run, tmp_path / "a")
    assert code == 1
    assert "model.img: expected sha256" in str(found["whole"]["detail"])
    assert list(found) == ["whole"]


def with_graph(artifact: Path, folder: Path, graph: Graph) -> Path:
    """A copy of `artifact` that claims to be compiled from `graph`."""
    copytree(artifact, folder)
    content = graph_to_bytes(graph)
    (folder / "model.graph").write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["model.graph"] = {"size": len(content), "sha256": digest(content)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_verify_finds_a_program_of_another_network(run: Run, artifact: Path, tmp_path: Path) -> None:
    graph = open_graph(str(artifact))
    weights = next(v.inputs[1] for v in graph.order if isinstance(v.op, IntConv))
    assert isinstance(weights.op, Const)
    flipped = constant(-weights.op.data, weights.name, weights.type)
    other = substitute(graph, lambda v: flipped if v.name == weights.name else v)
    code, found = checks(run, with_graph(artifact, tmp_path / "a", other))
    assert code == 1
    assert "sample 1, output 'logits'[0, " in str(found["bit-exact"]["detail"])


def test_first_difference_is_named(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that adds one to some value, and so to all that is computed from it."""
    graph, real = open_graph(str(artifact)), trace.reference_run
    wrong = [v for v in graph.order if isinstance(v.op, IntConv)][3].name.removesuffix(".acc")

    def faulty(cut: Graph, _target: object, feeds: trace.Feeds) -> trace.Feeds:
        touched = any(v.name == wrong for v in cut.order)
        return {name: array + np.float32(touched) for name, array in real(cut, feeds).items()}

    monkeypatch.setattr(trace, "run", faulty)
    feeds = {"input": np.ones((1, 1, 8, 8), np.float32)}
    assert str(trace.first_difference(graph, open_manifest(str(artifact)), feeds)).startswith(f"'{wrong}'[0, 0, 0, 0]: expected")


def test_no_difference_in_a_right_program(artifact: Path) -> None:
    feeds = {"input": np.random.default_rng(0).random((1, 1, 8, 8), np.float32)}
    assert trace.first_difference(open_graph(str(artifact)), open_manifest(str(artifact)), feeds) is None


# --- bench, inspect, targets ------------------------------------------------------------------------------------------


def test_bench(run: Run, artifact: Path, network: Path) -> None:
    facts = json.loads(run("bench", artifact, network, "--seconds", 0.05, "--json").stdout)
    times = facts["milliseconds"]
    assert list(times) == ["compiled", "onnxruntime float", "onnxruntime int8"]
    assert all(t["calls"] >= 7 and t["low"] <= t["median"] <= t["high"] for t in times.values())
    assert times["onnxruntime float"]["ratio"] == pytest.approx(times["onnxruntime float"]["median"] / times["compiled"]["median"])
    assert facts["cpu"]


def test_bench_alone_tells_what_to_compare_with(run: Run, artifact: Path) -> None:
    result = run("bench", artifact, "--seconds", 0.05)
    assert result.exit_code == 0
    assert "MODEL.onnx" in result.stdout


def test_bench_needs_a_program_of_this_machine(run: Run, network: Path, tmp_path: Path) -> None:
    run(network, "--target", "arm64", "--os", "windows", "-o", tmp_path / "a")
    assert "is compiled for arm64" in failed(run("bench", tmp_path / "a"), 2)


def test_inspect(run: Run, artifact: Path) -> None:
    facts = json.loads(run("inspect", artifact, "--json").stdout)
    assert {layer["operator"] for layer in facts["report"]["layers"]} >= {"IntConv 3x3", "IntConv 3x3/2", "IntConv 1x1/2"}
    assert facts["inputs"][0]["name"] == "input"
    assert sum(facts["sizes"].values()) > 10_000
    assert max(b["offset"] + b["size"] for b in facts["memory"]) <= facts["sizes"]["arena"]
    text = run("inspect", artifact).stdout
    for heading in ("Inputs and outputs", "Layers", "Memory", "Integer-only: proven by disassembly"):
        assert heading in text


def test_inspect_value(run: Run, artifact: Path) -> None:
    result = run("inspect", artifact, "logits")
    assert result.exit_code == 0
    assert "IntConv(" in result.stdout
    facts = json.loads(run("inspect", artifact, "logits", "--json").stdout)
    assert facts["value"] == "logits"
    assert any(layer["name"] == "logits" for layer in facts["layer"])


def test_inspect_of_a_misspelt_value(run: Run, artifact: Path) -> None:
    assert "no value is called 'logit'. Did you mean 'logits'?" in failed(run("inspect", artifact, "logit"), 2)


def test_targets(run: Run) -> None:
    rows = {r["name"]: r for r in json.loads(run("targets", "--json").stdout)["targets"]}
    assert rows.keys() == {*TARGETS, "onnx-qdq", "onnx-qoperator"}
    assert sum(r["host"] for r in rows.values()) == 1
    text = run("targets").stdout
    assert all(name in text for name in rows)


def test_bench_wants_the_network_that_was_compiled(run: Run, artifact: Path, tmp_path: Path) -> None:
    assert "found no file 'nosuch.onnx'" in failed(run("bench", artifact, "nosuch.onnx"), 2)
    ends = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["n", 1, 9, 9]) for n in ("input", "logits")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["input"], ["logits"])], "g", ends[:1], ends[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9), tmp_path / "other.onnx")
    message = failed(run("bench", artifact, tmp_path / "other.onnx"), 2)
    assert "takes 'input' of shape ['n', 1, 9, 9], the compiled program [1, 1, 8, 8]" in message
