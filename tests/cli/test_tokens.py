"""Networks that take tokens, from the ONNX file to the answers: calibrated, verified, measured, evaluated; and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import Run, failed, invoke
from onnx import TensorProto, helper, numpy_helper

import qcompiler
from qcompiler.cli.floats import session_of
from qcompiler.runtime import InputError

VOCABULARY, LENGTH, CLASSES = 60, 12, 5


def tagger() -> onnx.ModelProto:
    """Tokens (int64) and kinds (int32, cast on the way to their table) to scores of each position."""
    rng = np.random.default_rng(0)
    tables = {
        "words": rng.normal(size=(VOCABULARY, 24)),
        "types": rng.normal(size=(2, 24)),
        "w": rng.normal(size=(24, 40)) / 5,
        "v": rng.normal(size=(40, 5)) / 6,
    }
    nodes = [
        helper.make_node("Cast", ["kinds"], ["wide"], to=TensorProto.INT64),
        helper.make_node("Gather", ["words", "tokens"], ["word"]),
        helper.make_node("Gather", ["types", "wide"], ["type"]),
        helper.make_node("Add", ["word", "type"], ["sum"]),
        helper.make_node("MatMul", ["sum", "w"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("MatMul", ["active", "v"], ["scores"]),
    ]
    inputs = [helper.make_tensor_value_info(n, t, ["N", "L"]) for n, t in (("tokens", TensorProto.INT64), ("kinds", TensorProto.INT32))]
    output = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", "L", CLASSES])
    constants = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in tables.items()]
    graph = helper.make_graph(nodes, "tagger", inputs, [output], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def data(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"tokens": rng.integers(0, VOCABULARY, (count, LENGTH)), "kinds": rng.integers(0, 2, (count, LENGTH))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network, data with labels, and the artifact."""
    place = tmp_path_factory.mktemp("tokens")
    onnx.save(tagger(), place / "tagger.onnx")
    np.savez(place / "calib.npz", **data(32))
    given = data(9, 1)
    session = session_of(str(place / "tagger.onnx"), 1)
    scores = session.run(None, {"tokens": given["tokens"], "kinds": given["kinds"].astype(np.int32)})[0]
    labels = scores.argmax(2)
    labels[:, -3:] = -1
    np.savez(place / "eval.npz", **given, labels=labels)
    result = invoke(place / "tagger.onnx", "--calib", place / "calib.npz", "--shape", f"tokens=1,{LENGTH}", "-o", place / "artifact")
    assert result.exit_code == 0, result.output
    return place


def test_the_program_is_the_reference(folder: Path, run: Run) -> None:
    result = run("verify", folder / "artifact")
    assert result.exit_code == 0, result.output
    result = run("verify", folder / "artifact", "--data", folder / "eval.npz", "--json")
    assert json.loads(result.stdout)["passed"]


def test_positions_are_labelled(folder: Path, run: Run) -> None:
    """Nine positions of twelve have a label, which is the float network's own class."""
    facts = json.loads(run("eval", folder / "artifact", "--data", folder / "eval.npz", "--labels", "labels", "--json").stdout)
    assert facts["samples"] == 9 * (LENGTH - 3)
    assert facts["float_top1"] == 100
    assert facts["top1"] == facts["agreement"] > 90
    assert facts["sqnr"]["scores"] > 25


def test_it_is_measured_on_valid_tokens(folder: Path, run: Run) -> None:
    result = run("bench", folder / "artifact", folder / "tagger.onnx", "--seconds", "0.02", "--json")
    assert result.exit_code == 0, result.output
    assert set(json.loads(result.stdout)["milliseconds"]) == {"compiled", "onnxruntime float", "onnxruntime int8"}


def test_intervals_are_shown(folder: Path, run: Run) -> None:
    assert "-60 .. 59" in run("inspect", folder / "artifact").output
    tokens = json.loads(run("inspect", folder / "artifact", "--json").stdout)["inputs"][0]
    assert (tokens["low"], tokens["high"]) == (-VOCABULARY, VOCABULARY - 1)


def test_tokens_outside_of_the_vocabulary_are_refused(folder: Path, run: Run) -> None:
    given = data(3)
    given["tokens"][2, 5] = VOCABULARY
    np.savez(folder / "bad.npz", **given)
    message = r"'tokens': expected integers in \[-60, 59\], found 60 at \[0, 5\]"
    assert re.search(message, failed(run("eval", folder / "artifact", "--data", folder / "bad.npz"), 2))
    assert re.search(message, failed(run("verify", folder / "artifact", "--data", folder / "bad.npz"), 2))
    again = run(folder / "tagger.onnx", "--calib", folder / "bad.npz", "--shape", f"tokens=1,{LENGTH}", "-o", folder / "other")
    assert re.search(r"calibration input 'tokens': expected integers in \[-60, 59\], found 60 at \[2, 5\]", failed(again, 2))
    assert not (folder / "other").exists()


def test_numbers_that_do_not_fit_their_type_do_not_calibrate(folder: Path, run: Run) -> None:
    given = data(3)
    given["kinds"][1, 1] = 1 << 32
    np.savez(folder / "bad.npz", **given)
    again = run(folder / "tagger.onnx", "--calib", folder / "bad.npz", "--shape", f"tokens=1,{LENGTH}", "-o", folder / "other")
    assert re.search(r"calibration input 'kinds': expected int32, found int64 in \[0, 4294967296\], which does not fit", failed(again, 2))


def test_program_and_reference_refuse_alike() -> None:
    program = qcompiler.compile(tagger(), shapes={"tokens": (1, LENGTH)})
    assert program.model.synthetic
    given = data(2)
    assert np.array_equal(program.run(given)["scores"], program.reference(given)["scores"])
    given["kinds"][1, 0] = -3
    for call in (program.run, program.reference):
        with pytest.raises(InputError, match=r"input 'kinds': expected integers in \[-2, 1\], found -3"):
            call(given)
