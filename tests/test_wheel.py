"""`qcompile package --wheel`: installed where there is no compiler, the program gives the same answers."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from command_line import failed, invoke

import qcompiler
from qcompiler.backends.wheel import runtime_files, write_wheel

MODELS = Path(__file__).parents[1] / "models"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel") / "digits"
    calib = np.load(MODELS / "digits_calib.npz")["input"][:32]
    qcompiler.compile(MODELS / "digits_dwconv.onnx", calibration=[{"input": calib}], name="digits").save(folder)
    return folder


@pytest.fixture(scope="module")
def python(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with numpy (a link to this one's) and the installed wheel, and nothing else."""
    place = tmp_path_factory.mktemp("fresh")
    result = invoke("package", artifact, "--wheel", "-o", place / "dist")
    assert result.exit_code == 0, result.output
    (wheel,) = (place / "dist").glob("*.whl")
    venv.create(place / "env", with_pip=True)
    python = place / "env" / "bin" / "python"
    (site,) = (place / "env" / "lib").glob("python*/site-packages")
    for source in Path(np.__file__).parents[1].glob("numpy*"):
        (site / source.name).symlink_to(source)
    install = [python, "-m", "pip", "install", "--no-index", "--disable-pip-version-check", wheel]
    done = subprocess.run(list(map(str, install)), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return python


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")
def test_the_installed_program_gives_the_same_bits(python: Path, artifact: Path, tmp_path: Path) -> None:
    images = np.load(MODELS / "digits_eval.npz")["input"][:64]
    np.savez(tmp_path / "images.npz", input=images)
    source = """
import sys, importlib.util, numpy as np
assert importlib.util.find_spec("qcompiler") is None and importlib.util.find_spec("onnx") is None
import digits
assert not [m for m in sys.modules if m.startswith("qcompiler")]
images = np.load("images.npz")["input"]
one = digits.program()
assert one is digits.program() and digits.load(threads=2).threads == 2
np.savez("answers.npz", one=one.run({"input": images})["logits"], two=digits.load(threads=2).run({"input": images})["logits"])
"""
    subprocess.run([str(python), "-c", source], cwd=tmp_path, check=True)
    found, expected = np.load(tmp_path / "answers.npz"), qcompiler.load(artifact).run({"input": images})["logits"]
    assert found["one"].tobytes() == expected.tobytes() == found["two"].tobytes()


def test_a_wheel_holds_the_program_and_nothing_else(artifact: Path, tmp_path: Path) -> None:
    path = write_wheel(artifact, tmp_path, "shop_digits", "2.1")
    assert path.name.startswith("shop_digits-2.1-py3-none-manylinux2014_")
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        assert wheel.read("shop_digits/program/model.img") == (artifact / "model.img").read_bytes()
        assert b"Requires-Dist: numpy\n" in wheel.read("shop_digits-2.1.dist-info/METADATA")
    program = {n for n in names if n.startswith("shop_digits/program/")}
    assert program <= {f"shop_digits/program/{n}" for n in ("manifest.json", "model.img", "model.so")}
    assert not [n for n in names if "graph" in n or n.endswith((".o", ".a", ".onnx"))]
    assert path.read_bytes() == write_wheel(artifact, tmp_path / "again", "shop_digits", "2.1").read_bytes()


def test_the_vendored_runtime_goes_by_any_name() -> None:
    texts = {name: content.decode() for name, content in runtime_files()}
    assert "raise ImportError" not in texts["__init__.py"]
    assert not [n for n, t in texts.items() if "import qcompiler" in t or "from qcompiler" in t]


def test_a_foreign_program_gets_the_tag_of_its_system(tmp_path: Path) -> None:
    program = qcompiler.compile(MODELS / "digits_dwconv.onnx", "arm64@android", name="digits")
    program.save(tmp_path / "phone", share=False)
    assert write_wheel(tmp_path / "phone", tmp_path).name == "digits-1.0-py3-none-android_21_arm64_v8a.whl"


@pytest.mark.parametrize(
    ("options", "message"),
    [(("--name", "my-net"), "'my-net'; choose one with --name"), (("--version", "new"), "expected a version such as 1.0")],
)
def test_names_and_versions_are_checked(artifact: Path, tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    assert message in failed(invoke("package", artifact, "--wheel", "-o", tmp_path, *options), 2)
    assert not list(tmp_path.iterdir())


def test_a_damaged_program_is_not_packaged(artifact: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(artifact, tmp_path / "copy")
    with (tmp_path / "copy" / "model.img").open("r+b") as file:
        file.write(b"\xff\xff\xff\xff")
    assert "model.img of" in failed(invoke("package", tmp_path / "copy", "--wheel", "-o", tmp_path / "dist"), 2)
