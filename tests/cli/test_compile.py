"""`qcompile MODEL.onnx`: what it writes, what it says, and how it fails."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import Run, failed
from onnx import TensorProto, helper
from PIL import Image

import qcompiler
from qcompiler.cli.compile import written_whole
from qcompiler.errors import UsageError
from qcompiler.runtime import damaged_files, read_manifest


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_alone_it_tells_the_next_step(run: Run) -> None:
    result = run()
    assert result.exit_code == 0
    for command in ("--target arm64", "qcompile eval", "qcompile verify", "qcompile bench", "qcompile inspect", "qcompile targets"):
        assert command in result.output


def test_version(run: Run) -> None:
    assert run("--version").output == f"qcompile, version {qcompiler.__version__}\n"


def test_artifact_is_whole(artifact: Path) -> None:
    assert {"manifest.json", "model.o", "model.a", "model.h", "model.img", "model.graph"} <= set(contents(artifact))
    assert damaged_files(artifact) == {}


def test_artifact_runs_with_the_runtime_alone(artifact: Path, evaluation: Path) -> None:
    data = np.load(evaluation)
    logits = qcompiler.load(artifact).run({"input": data["input"]})["logits"]
    assert (logits.argmax(1) == data["labels"]).mean() > 0.97


def test_without_data_it_works_and_says_what_that_means(run: Run, network: Path, tmp_path: Path) -> None:
    result = run(network, "--target", "arm64", "-o", tmp_path / "a")
    assert result.exit_code == 0
    assert "Warning: no calibration data: ranges come from random inputs" in result.stderr
    assert read_manifest(tmp_path / "a").target.name == "arm64"


def test_calibrated_it_does_not_warn(run: Run, network: Path, calib: Path, tmp_path: Path) -> None:
    result = run(network, "--calib", calib, "--limit", 20, "--method", "minmax", "-o", tmp_path / "a")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert "Next: qcompile verify" in result.stdout


def test_json_is_all_there_is_on_stdout(run: Run, network: Path, tmp_path: Path) -> None:
    result = run(network, "--json", "--target", "x86-64", "-o", tmp_path / "a")
    facts = json.loads(result.stdout)
    assert facts["target"] == "x86-64"
    assert facts["synthetic"] is True
    assert facts["macs"] > 500_000
    assert facts["certificate"]["ok"] is True


def test_default_place(run: Run, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(network, "--target", "arm64").exit_code == 0
    assert damaged_files("build/digits_resnet-arm64") == {}


@pytest.mark.parametrize(("system", "obj"), [("linux", "model.o"), ("android", "model.o"), ("macos", "model.o"), ("windows", "model.obj")])
def test_systems(run: Run, network: Path, tmp_path: Path, system: str, obj: str) -> None:
    result = run(network, "--target", "arm64", "--os", system, "-o", tmp_path / "a")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "a" / obj).stat().st_size > 1000
    assert read_manifest(tmp_path / "a").target.os == system


@pytest.mark.parametrize(("target", "operator"), [("onnx-qdq", "DequantizeLinear"), ("onnx-qoperator", "QLinearConv")])
def test_quantized_onnx(run: Run, network: Path, calib: Path, tmp_path: Path, target: str, operator: str) -> None:
    place = tmp_path / "new" / "model.int8.onnx"
    assert run(network, "--target", target, "--calib", calib, "-o", place).exit_code == 0
    model = onnx.load(place)
    onnx.checker.check_model(model, full_check=True)
    assert operator in {n.op_type for n in model.graph.node}
    assert [p.name for p in place.parent.iterdir()] == ["model.int8.onnx"]


def test_folder_of_images_gives_the_same_program(run: Run, network: Path, calib: Path, tmp_path: Path) -> None:
    pixels = np.rint(np.load(calib)["input"][:40] * 240).astype(np.uint8)
    np.savez(tmp_path / "c.npz", input=(pixels.astype(np.float32) / 256 - np.float32(0.5)) / 2)
    (tmp_path / "images").mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image[0]).save(tmp_path / "images" / f"{i:03}.png")
    flags = ("--scale", 1 / 256, "--mean", 0.5, "--std", 2)
    assert run(network, "--calib", tmp_path / "images", *flags, "-o", tmp_path / "a").exit_code == 0
    assert run(network, "--calib", tmp_path / "c.npz", "-o", tmp_path / "b").exit_code == 0
    assert (tmp_path / "a" / "model.o").read_bytes() == (tmp_path / "b" / "model.o").read_bytes()


def test_function_gives_the_same_program(run: Run, network: Path, calib: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cli_test_digits.py").write_text(
        f"import numpy as np\ndef feeds():\n    for x in np.load({str(calib)!r})['input'][:40]:\n        yield {{'input': x[None]}}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert run(network, "--calib", "cli_test_digits:feeds", "-o", "a").exit_code == 0
    assert run(network, "--calib", calib, "--limit", 40, "-o", "b").exit_code == 0
    assert Path("a/model.o").read_bytes() == Path("b/model.o").read_bytes()


# --- wrong use --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nowhere.onnx"], "'nowhere.onnx' is neither a file nor a command"),
        (["evla", "build"], "Did you mean 'eval'?"),
        (["."], "'.' is a folder; expected an ONNX file"),
        (["NETWORK", "--target", "z80"], "unknown target 'z80'; expected host or one of x86-64,"),
        (["NETWORK", "--os", "beos"], "Try 'qcompile compile --help'."),
        (["NETWORK", "--colour", "rgb"], "No such option"),
        (["NETWORK", "--mean", "a,b"], "expected numbers separated by commas, found 'a,b'"),
        (["NETWORK", "--shape", "input"], "expected NAME=1,3,224,224, found 'input'"),
        (["NETWORK", "--shape", "other=1,1,8,8"], "'other', which is no input of the model"),
        (["NETWORK", "--shape", "input=1,3,8,8"], "does not fit the model"),
        (["NETWORK", "--resize", "squash"], "expected crop, crop:0.875, stretch or pad, found 'squash'"),
        (["NETWORK", "--resize", "crop:2"], "expected crop, crop:0.875, stretch or pad"),
        (["NETWORK", "--calib", "nowhere.npz"], "'nowhere.npz' does not exist"),
        (["NETWORK", "--target", "onnx-qdq", "-o", "folder"], "expected a file ending in .onnx"),
        (["NETWORK", "-o", "a.onnx"], "is the name of a network, but host gives a folder"),
        (["NETWORK", "--name", "3d"], "expected a C identifier as prefix, found '3d'"),
    ],
)
def test_wrong_use(run: Run, network: Path, arguments: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert expected in failed(run(*(network if a == "NETWORK" else a for a in arguments)), 2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"image": np.zeros((4, 1, 8, 8), np.float32)}, "lacks 'input' float32[1,1,8,8]"),
        ({"input": np.zeros((4, 3, 8, 8), np.float32)}, "expected 'input' of shape [samples,1,8,8], found [4, 3, 8, 8]"),
        ({"input": np.zeros((4, 1, 8, 8), np.uint8)}, "'input': expected elements of type float32, found uint8"),
        ({"input": np.full((4, 1, 8, 8), np.nan, np.float32)}, "'input': expected finite numbers, found nan"),
        ({"input": np.zeros((0, 1, 8, 8), np.float32)}, "holds no samples"),
    ],
)
def test_bad_calibration_data(run: Run, network: Path, tmp_path: Path, arrays: dict[str, np.ndarray], expected: str) -> None:
    np.savez(tmp_path / "c.npz", **arrays)  # type: ignore[arg-type]
    assert expected in failed(run(network, "--calib", tmp_path / "c.npz", "-o", tmp_path / "a"), 2)
    assert not (tmp_path / "a").exists()


# --- bad models -------------------------------------------------------------------------------------------------------


def test_truncated_model(run: Run, network: Path, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(network.read_bytes()[:5000])
    failed(run(tmp_path / "m.onnx", "-o", tmp_path / "a"), 3)


def test_all_unsupported_operators_are_named_at_once(run: Run, tmp_path: Path) -> None:
    nodes = [helper.make_node("Det", ["x"], ["a"], "first"), helper.make_node("Hardmax", ["x"], ["b"], "second")]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [1, 4, 4]), ("a", [1]), ("b", [1, 4, 4]))]
    model = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:]), opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(model, tmp_path / "m.onnx")
    message = failed(run(tmp_path / "m.onnx", "-o", tmp_path / "a"), 3)
    assert "Det" in message
    assert "Hardmax" in message


# --- trouble while writing --------------------------------------------------------------------------------------------


def test_place_that_cannot_be_written(run: Run, network: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    failed(run(network, "-o", tmp_path / "file" / "a"), 2)
    failed(run(network, "-o", tmp_path / "file"), 2)
    failed(run(network, "--target", "onnx-qdq", "-o", tmp_path / "file" / "a.onnx"), 2)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="this user may write everywhere")
def test_folder_without_permission(run: Run, network: Path, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(0o500)
    assert "is no folder that you may write to" in failed(run(network, "-o", tmp_path / "closed" / "a"), 2)


def test_places_are_checked_before_the_work(run: Run, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("qcompiler.api.quantize_model", pytest.fail)
    failed(run(network, "-o", tmp_path / "file" / "a"), 2)


def test_folder_of_something_else_is_not_replaced(run: Run, network: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    assert "'thesis.txt', which is no part of an artifact" in failed(run(network, "-o", tmp_path), 2)
    assert contents(tmp_path) == {"thesis.txt": b"years of work"}


def test_full_disk_leaves_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "m.onnx"
    written_whole(place, b"earlier")

    def full(self: Path, content: bytes) -> int:
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UsageError, match="No space left"):
        written_whole(place, b"later")
    assert contents(tmp_path) == {"m.onnx": b"earlier"}


def test_system_errors_are_told_in_one_line(run: Run, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "a/model.o")

    monkeypatch.setattr("qcompiler.api.Program.save", full)
    assert "No space left on device ('a/model.o')" in failed(run(network, "-o", tmp_path / "a"), 2)


def test_bugs_are_told_as_such(run: Run, network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("qcompiler.api.quantize_model", wrong)
    assert "internal error: ZeroDivisionError: division by zero; set QC_DEBUG=1" in failed(run(network), 70)
    monkeypatch.setenv("QC_DEBUG", "1")
    assert isinstance(run(network).exception, ZeroDivisionError)


SLOW = """
import time, pathlib, numpy as np
def feeds():
    for i in range(1000):
        yield {"input": np.random.default_rng(i).random((1, 1, 8, 8), np.float32)}
        pathlib.Path("started").touch()
        time.sleep(0.05)
"""


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_interrupted_it_ends_cleanly_and_leaves_the_earlier_artifact(run: Run, network: Path, tmp_path: Path) -> None:
    assert run(network, "-o", tmp_path / "a").exit_code == 0
    before = contents(tmp_path / "a")
    (tmp_path / "cli_test_slow.py").write_text(SLOW)
    command = [sys.executable, "-m", "qcompiler.cli", str(network), "--calib", "cli_test_slow:feeds", "-o", "a"]
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs inherit it ignored
    )
    while not (tmp_path / "started").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip() == "Error: interrupted; nothing was replaced"
    assert contents(tmp_path / "a") == before


def test_machine_code_is_kept_unless_told_otherwise(run: Run, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, objects = tmp_path / "cache", list[bytes]()
    monkeypatch.setenv("QC_CACHE", str(cache))
    for how, entries in ((["--no-cache"], 0), ([], 1), ([], 1)):
        assert run(network, *how, "-o", tmp_path / "a").exit_code == 0
        assert len(list(cache.glob("*"))) == entries
        objects.append(next((tmp_path / "a").glob("*.o")).read_bytes())
    assert len(set(objects)) == 1
