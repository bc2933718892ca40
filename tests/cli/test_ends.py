"""`--input u8` and `--output` of the command, on images and archives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command_line import Run, failed

import qcompiler


def test_bytes_in_class_out(run: Run, network: Path, calib: Path, evaluation: Path, tmp_path: Path) -> None:
    result = run(network, "--calib", calib, "--input", "u8", "--layout", "nhwc", "--output", "argmax", "-o", tmp_path / "digits")
    assert result.exit_code == 0, result.output
    assert run("verify", tmp_path / "digits").exit_code == 0
    header = (tmp_path / "digits/model.h").read_text()
    assert "#define MODEL_INPUT_0_TYPE unsigned char" in header
    assert "#define MODEL_INPUT_0_SHAPE {1, 8, 8, 1}" in header
    data = np.load(evaluation)
    pixels = np.round(data["input"] * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    ((_, found),) = qcompiler.load(tmp_path / "digits").run({"input": pixels}).items()
    assert (found == data["labels"]).mean() >= 0.985


def test_a_folder_of_images_calibrates_a_program_of_pixels(run: Run, network: Path, calib: Path, tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "images").mkdir()
    images = np.load(calib)["input"][:32]
    for n, image in enumerate(images):
        Image.fromarray(np.round(image[0] * 255).astype(np.uint8)).save(tmp_path / f"images/{n:03}.png")
    np.savez(tmp_path / "same.npz", input=np.round(images * 255).astype(np.uint8))
    for source in ("images", "same.npz"):
        result = run(network, "--calib", tmp_path / source, "--input", "u8", "-o", tmp_path / f"from-{source}")
        assert result.exit_code == 0, result.output
    graphs = [(tmp_path / f"from-{source}/model.graph").read_bytes() for source in ("images", "same.npz")]
    assert graphs[0] == graphs[1]


@pytest.mark.parametrize("options", [("--mean", "1,2"), ("--std", "0")])
def test_wrong_numbers_are_refused(run: Run, network: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    assert "expected" in failed(run(network, "--input", "u8", *options, "-o", tmp_path / "x"), 2)


def test_several_classes_in_order(run: Run, network: Path, calib: Path, evaluation: Path, tmp_path: Path) -> None:
    for answer in ("scores", "topk:3"):
        result = run(network, "--calib", calib, "--output", answer, "-o", tmp_path / answer.replace(":", ""))
        assert result.exit_code == 0, result.output
    images = np.load(evaluation)["input"]
    scores, classes = (next(iter(qcompiler.load(tmp_path / name).run({"input": images}).values())) for name in ("scores", "topk3"))
    assert classes.shape == (len(images), 3)
    assert (np.argsort(-scores, 1, kind="stable")[:, :3] == classes).mean() > 0.99
    assert run("verify", tmp_path / "topk3").exit_code == 0


@pytest.mark.parametrize("answer", ["topk", "topk:0", "topk:x", "class", "argmax:2", "u8:", "u8:x"])
def test_unknown_answers_are_refused(run: Run, network: Path, tmp_path: Path, answer: str) -> None:
    assert "expected --output scores" in failed(run(network, "--output", answer, "-o", tmp_path / "x"), 2)


def test_scores_as_bytes(run: Run, network: Path, calib: Path, evaluation: Path, tmp_path: Path) -> None:
    """The step is the reader's; what is compared with the float network are its scores, saturated and rounded in the same way."""
    for answer in ("scores", "u8:0.1"):
        result = run(network, "--calib", calib, "--output", answer, "-o", tmp_path / answer[:2])
        assert result.exit_code == 0, result.output
    images = np.load(evaluation)["input"]
    scores, found = (qcompiler.load(tmp_path / name).run({"input": images}) for name in ("sc", "u8"))
    (scores,), ((name, found),) = scores.values(), found.items()
    assert (name, found.dtype) == ("logits.u8", np.uint8)
    assert np.abs(np.clip(np.rint(scores / 0.1), 0, 255) - found).max() <= 3
    assert run("verify", tmp_path / "u8", "--data", evaluation).exit_code == 0
    assert "#define MODEL_OUTPUT_0_TYPE unsigned char" in (tmp_path / "u8/model.h").read_text()
    assert "positive step" in failed(run(network, "--output", "u8:-1", "-o", tmp_path / "x"), 2)
