"""`--input u8` and `--answer argmax` of the command, on images and archives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command_line import Run, failed

import qcompiler


def test_bytes_in_class_out(run: Run, network: Path, calib: Path, evaluation: Path, tmp_path: Path) -> None:
    result = run(network, "--calib", calib, "--input", "u8", "--layout", "nhwc", "--answer", "argmax", "-o", tmp_path / "digits")
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
