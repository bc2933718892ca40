"""What the documentation shows, done."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from shutil import which

import numpy as np
import pytest
from command_line import Run

import qcompiler

ROOT = Path(__file__).parents[2]


def blocks(document: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / document).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.skipif(which("cc") is None, reason="no C compiler here")
def test_c_example_runs(artifact: Path, tmp_path: Path) -> None:
    (source,) = (b for b in blocks("docs/embedding.md", "c") if "int main" in b)
    (tmp_path / "app.c").write_text(source)
    command = ["cc", "-std=c11", "-Wall", "-Werror", "-I", str(artifact), "app.c", str(artifact / "model.a"), "-o", "app"]
    subprocess.run(command, cwd=tmp_path, check=True)
    printed = subprocess.run([tmp_path / "app"], capture_output=True, text=True, check=True).stdout.split()
    expected = qcompiler.load(artifact).run({"input": np.zeros((1, 1, 8, 8), np.float32)})["logits"].ravel()
    assert printed == [f"{x:g}" for x in expected]


def test_python_example_runs(calib: Path, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source,) = (b for b in blocks("README.md", "python") if "qcompiler.compile" in b)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.onnx").write_bytes(network.read_bytes())
    images = np.load(calib)["input"][:8]
    exec(source, {"batches": [{"input": images}], "x": images[:1]})
    assert (tmp_path / "build/model/manifest.json").is_file()


def commands(document: str) -> list[list[str]]:
    """The words of every command shown, without what is said of it; those for a device of the reader's are left out."""
    lines = [line for line in (ROOT / document).read_text(encoding="utf-8").splitlines() if line.startswith("qcompile ")]
    return [re.split(r" {2,}|#", line)[0].split()[1:] for line in lines if "ssh://" not in line]


@pytest.mark.parametrize(("document", "least"), [("README.md", 6), ("docs/dsp.md", 3), ("docs/precision.md", 6), ("docs/benchmarks.md", 1)])
def test_commands_run(
    document: str, least: int, run: Run, artifact: Path, calib: Path, evaluation: Path, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = {"model.onnx": network, "MODEL.onnx": network, "calib.npz": calib, "data.npz": calib, "eval.npz": evaluation}
    for name, path in files.items():
        Path(name).write_bytes(path.read_bytes())
    Path("plan.toml").write_text('default = "w8a8"\n', encoding="utf-8")
    shutil.copytree(artifact, "ARTIFACT")
    shown = commands(document)
    assert len(shown) >= least
    for words in shown:
        result = run(*words)
        assert result.exit_code == 0, f"{' '.join(words)}: {result.output}"


def test_the_command_for_pixels_runs(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On photographs, as a network of three channels wants them."""
    from networks import efficientnet_lite
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    Path("model.onnx").write_bytes(efficientnet_lite().SerializeToString())
    for n, image in enumerate(np.random.default_rng(2).integers(0, 256, (8, 48, 48, 3), dtype=np.uint8)):
        Image.fromarray(image).save(f"images/{n}.png")
    (words,) = commands("docs/embedding.md")
    result = run(*words, "-o", "made")
    assert result.exit_code == 0, result.output
    assert run("verify", "made").exit_code == 0


def test_the_command_for_lengths_runs(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sentence_encoder import Encoder, sentences

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sentence_encoder.LONGEST", 128)
    Path("encoder.onnx").write_bytes(Encoder().built().SerializeToString())
    feeds = sentences(128, 4)
    np.savez("sentences.npz", **{name: np.concatenate([f[name] for f in feeds]) for name in ("ids", "mask")})
    (words,) = commands("docs/lengths.md")
    result = run(*words)
    assert result.exit_code == 0, result.output
    assert run("verify", "build/encoder").exit_code == 0


def test_the_commands_of_the_overview_run(
    run: Run, artifact: Path, calib: Path, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With files in place of the capitals, and what is optional left out."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(artifact, "made")
    assert run(str(network), "--calib", str(calib), "-t", "onnx-qdq:qnn", "-o", "quantized.onnx").exit_code == 0
    stands_for = {"ARTIFACT": "made", "DATA": str(calib), "MODEL.onnx": str(network), "P": "qnn"}
    shown = [" ".join(words) for words in commands("docs/cli.md")]
    assert len(shown) >= 7
    for text in shown:
        words = re.sub(r"\[.*?\]", "", text).split()
        files = stands_for | {"MODEL.onnx": "quantized.onnx"} if words[0] == "lint" else stands_for
        options = ["--calib", str(calib)] if words[0] == "MODEL.onnx" else []
        result = run(*(files.get(word, word) for word in words), *options)
        assert result.exit_code == 0, f"{text}: {result.output}"


def test_the_tutorial_runs(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = tmp_path / "models"
    models.mkdir()
    for name in ("digits_resnet.onnx", "digits_calib.npz", "digits_eval.npz"):
        (models / name).write_bytes((ROOT / "models" / name).read_bytes())
    monkeypatch.chdir(models)
    commands = [line.split() for block in blocks("docs/tutorial.md", "sh") for line in block.splitlines()]
    assert len(commands) >= 8
    for command in commands:
        assert command[0] == "qcompile"
        result = run(*command[1:])
        assert result.exit_code == 0, f"{' '.join(command)}: {result.output}"
    for source in blocks("docs/tutorial.md", "python"):
        exec(source, {})


def test_every_option_is_documented(run: Run) -> None:
    text = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    for command in ("compile", "eval", "verify", "bench", "inspect", "compare", "lint", "package", "targets"):
        options = set(re.findall(r"(--[a-z-]+)", run(command, "--help").output)) - {"--help"}
        assert {o for o in options if o not in text} <= {"--threads", "--seconds"}, command


NAMING = ("README.md", "CONTRIBUTING.md", *(f"docs/{name}.md" for name in ("architecture", "cli", "numerics", "embedding", "tutorial")))


@pytest.mark.parametrize("document", NAMING)
def test_files_that_are_named_exist(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    named = re.findall(r"`((?:qcompiler|passes|backends|runtime|tests|docs|models)/[\w/.]*)`", text)
    linked = [str(Path(document).parent / link) for link in re.findall(r"\]\(([\w/.]+)\)", text)]
    assert not [p for p in named + linked if not (ROOT / p).exists()]
