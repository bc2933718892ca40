"""The applications of `examples/`: built with this machine's tools, run, and compared with the program's own answers."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import wave
from pathlib import Path
from platform import machine
from shutil import which
from types import ModuleType

import numpy as np
import pytest

import qcompiler

ROOT = Path(__file__).parents[1]
EXAMPLES, MODELS = ROOT / "examples", ROOT / "models"
WARNINGS = ("-O1", "-Wall", "-Wextra", "-Werror")
needs_cc = pytest.mark.skipif(which("cc") is None, reason="no C compiler here")
needs_cxx = pytest.mark.skipif(which("c++") is None, reason="no C++ compiler here")
IMAGES = 40


def ran(*command: object, cwd: Path, given: str = "", **environment: str) -> str:
    """Standard output of a command that succeeds."""
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, input=given, capture_output=True, text=True, timeout=300, env={**os.environ, **environment}
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout


def compiled(network: str, folder: Path, name: str = "model", target: str = "host") -> Path:
    """A bundled network as an artifact."""
    calib = np.load(MODELS / "digits_calib.npz")["input"]
    program = qcompiler.compile(MODELS / f"{network}.onnx", target=target, calibration=[{"input": calib[:64]}], name=name)
    program.save(folder)
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled("digits_resnet", tmp_path_factory.mktemp("digits") / "digits")


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.load(MODELS / "digits_eval.npz")["input"][:IMAGES]


def quantized(artifact: Path, images: np.ndarray) -> np.ndarray:
    """The images as `model_run` takes them."""
    (tensor,) = qcompiler.load(artifact).inputs
    assert tensor.scale is not None
    return np.clip(np.round(images / np.float32(tensor.scale)) + tensor.zero_point, -128, 127).astype(np.int8)


def answers(artifact: Path, images: np.ndarray) -> list[int]:
    """The classes that the program itself names from the same integers."""
    scores = qcompiler.load(artifact).run_integer({"input": quantized(artifact, images)})["logits"]
    assert len(set(scores.argmax(1).tolist())) > 5
    return scores.argmax(1).tolist()


def write_digit(folder: Path, image: np.ndarray) -> None:
    """One quantized image as a C header."""
    (folder / "digit.h").write_text(f"static const signed char digit[] = {{{', '.join(map(str, image.ravel()))}}};\n")


def write_pgm(folder: Path, images: np.ndarray) -> list[Path]:
    """The images as files of 8-bit pixels."""
    paths = [folder / f"{n}.pgm" for n in range(len(images))]
    for path, image in zip(paths, images):
        path.write_bytes(b"P5\n8 8\n255\n" + np.round(image * 255).astype(np.uint8).tobytes())
    return paths


def as_text(images: np.ndarray) -> str:
    return "\n".join(" ".join(f"{x:.9g}" for x in image.ravel()) for image in images)


@needs_cc
def test_c_classifies_image_files(digits: Path, images: np.ndarray, tmp_path: Path) -> None:
    ran("cc", "-std=c11", *WARNINGS, "-I", digits, EXAMPLES / "c/classify.c", digits / "model.a", "-o", "classify", cwd=tmp_path)
    pixels = np.round(images * 255).astype(np.float32) / 255
    printed = ran(tmp_path / "classify", *write_pgm(tmp_path, images), cwd=tmp_path)
    assert [int(line) for line in printed.split()] == answers(digits, pixels)


@needs_cc
@pytest.mark.skipif(which("valgrind") is None, reason="no valgrind here")
@pytest.mark.parametrize("network", ["digits_resnet", "digits_dwconv"])
def test_c_under_valgrind(images: np.ndarray, tmp_path: Path, network: str) -> None:
    """Program and application: no byte outside of an allocation is touched, none that nobody wrote decides anything. Memcheck knows no AVX-512."""
    folder = compiled(network, tmp_path / "digits", target={"x86_64": "x86-64-avx2"}.get(machine(), "arm64"))
    ran("cc", "-std=c11", *WARNINGS, "-g", "-I", folder, EXAMPLES / "c/classify.c", folder / "model.a", "-o", "classify", cwd=tmp_path)
    pixels = np.round(images * 255).astype(np.float32) / 255
    memcheck = ("valgrind", "--quiet", "--error-exitcode=9", "--leak-check=full")
    printed = ran(*memcheck, tmp_path / "classify", *write_pgm(tmp_path, images[:3]), cwd=tmp_path)
    assert [int(line) for line in printed.split()] == answers(folder, pixels)[:3]


@needs_cc
def test_c_refuses_what_is_no_image(digits: Path, tmp_path: Path) -> None:
    ran("cc", "-std=c11", *WARNINGS, "-I", digits, EXAMPLES / "c/classify.c", digits / "model.a", "-o", "classify", cwd=tmp_path)
    (tmp_path / "short.pgm").write_bytes(b"P5\n8 8\n255\nxyz")
    done = subprocess.run([tmp_path / "classify", tmp_path / "short.pgm"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "short.pgm: expected a binary PGM file of 64 pixels" in done.stderr


@needs_cc
def test_c_without_a_library(digits: Path, images: np.ndarray, tmp_path: Path) -> None:
    q = quantized(digits, images[:4])
    for n in range(4):
        write_digit(tmp_path, q[n])
        flags = ("-std=c11", *WARNINGS, "-ffreestanding", "-fno-stack-protector", "-nostdlib", "-static")
        ran("cc", *flags, "-I", digits, "-I", tmp_path, EXAMPLES / "c/bare.c", digits / "model.a", "-o", "bare", cwd=tmp_path)
        assert subprocess.run([tmp_path / "bare"]).returncode == answers(digits, images)[n]


@needs_cc
def test_two_programs_in_one_application(images: np.ndarray, tmp_path: Path) -> None:
    folders = [compiled(f"digits_{name}", tmp_path / name, name) for name in ("resnet", "dwconv")]
    for n in range(3):
        assert np.array_equal(*(quantized(folder, images[n]) for folder in folders)), "one image feeds both"
        write_digit(tmp_path, quantized(folders[0], images[n]))
        libraries = [folder / "model.a" for folder in folders]
        includes = [f"-I{folder}" for folder in (*folders, tmp_path)]
        ran("cc", "-std=c11", *WARNINGS, *includes, EXAMPLES / "c/two.c", *libraries, "-o", "two", cwd=tmp_path)
        printed = ran(tmp_path / "two", cwd=tmp_path)
        assert [int(c) for c in printed.split()] == [answers(folder, images)[n] for folder in folders]


@needs_cc
@pytest.mark.parametrize("sanitizer", ["none", "thread", "address,undefined"])
def test_threads_and_pool_give_the_same_answers(digits: Path, images: np.ndarray, tmp_path: Path, sanitizer: str) -> None:
    """The application is instrumented, the program's object is not: its bounds are held by guard pages elsewhere (`guarded`)."""
    flags = () if sanitizer == "none" else ("-g", f"-fsanitize={sanitizer}")
    command = ("cc", "-std=c11", *WARNINGS, *flags, "-pthread", "-I", digits, EXAMPLES / "c/threads.c", digits / "model.a", "-o", "threads")
    if flags and not has_sanitizer(flags, tmp_path):
        pytest.skip(f"this compiler has no -fsanitize={sanitizer}")
    ran(*command, cwd=tmp_path)
    (tmp_path / "images.i8").write_bytes(quantized(digits, images).tobytes())
    printed = ran(*without_randomization(sanitizer), tmp_path / "threads", "images.i8", cwd=tmp_path, TSAN_OPTIONS="halt_on_error=1")
    assert [int(line) for line in printed.split()] == answers(digits, images)


def has_sanitizer(flags: tuple[str, ...], folder: Path) -> bool:
    """Whether the compiler links an empty program with it."""
    (folder / "empty.c").write_text("int main(void) { return 0; }\n")
    return subprocess.run(["cc", *flags, "empty.c", "-o", "empty"], cwd=folder, capture_output=True).returncode == 0


def without_randomization(sanitizer: str) -> tuple[str, ...]:
    """ThreadSanitizer's shadow wants its address range free, which kernels with much randomization do not leave."""
    return ("setarch", "-R") if sanitizer == "thread" and which("setarch") else ()


@needs_cxx
def test_cpp_class(digits: Path, images: np.ndarray, tmp_path: Path) -> None:
    flags = ("-std=c++20", *WARNINGS)
    ran("c++", *flags, "-I", digits, EXAMPLES / "cpp/classify.cpp", digits / "model.a", "-o", "classify", cwd=tmp_path)
    printed = ran(tmp_path / "classify", cwd=tmp_path, given=as_text(images))
    assert [int(line) for line in printed.split()] == answers(digits, images)


@needs_cxx
def test_cpp_header_of_every_form_compiles(tmp_path: Path) -> None:
    """Several inputs and outputs, types, and a class that moves but does not copy."""
    from qcompiler.backends.embed import cpp_header
    from qcompiler.runtime.artifact import Interface, Tensor

    tensors = (Tensor("ids", (1, 4), "int64", "int64", low=0, high=9), Tensor("mask", (1, 4), "bool", "bool"))
    interface = Interface("twin", 100, 0, tensors, (Tensor("a", (3,), scale=0.5), Tensor("b", (), "int64", "int64")))
    (tmp_path / "twin.hpp").write_text(cpp_header(interface, "test"))
    entry = "int {}(const void *const *inputs, void *const *outputs, void *arena);\n"
    (tmp_path / "model.h").write_text('extern "C" {\n' + entry.format("twin_run") + entry.format("twin_run_f32") + "}\n")
    (tmp_path / "app.cpp").write_text(
        '#include "twin.hpp"\n#include <cstdint>\n#include <type_traits>\n'
        'extern "C" int twin_run(const void *const *in, void *const *out, void *arena) {\n'
        "  if (static_cast<const std::int64_t *>(in[0])[0] > 9) return 2;\n"
        "  static_cast<std::int64_t *>(out[1])[0] = reinterpret_cast<std::uintptr_t>(arena) % 64; return 0; }\n"
        'extern "C" int twin_run_f32(const void *const *, void *const *, void *) { return 0; }\n'
        "static_assert(!std::is_copy_constructible_v<twin::Program> && std::is_nothrow_move_constructible_v<twin::Program>);\n"
        "int main() { std::int64_t ids[4] = {}, b[1] = {7}; unsigned char mask[4] = {}; std::int8_t a[3];\n"
        "  twin::Program first; twin::Program second = std::move(first); first = std::move(second);\n"
        "  first.run(ids, mask, a, b); if (b[0]) return 1;\n"
        "  ids[0] = 10; try { first.run(ids, mask, a, b); } catch (const std::out_of_range &) { return 0; } return 2; }\n"
    )
    flags = ("-std=c++20", *WARNINGS, "-fsanitize=address,undefined")
    ran("c++", *flags, "app.cpp", "-o", "app", cwd=tmp_path)
    ran(tmp_path / "app", cwd=tmp_path)


@needs_cc
@pytest.mark.skipif(which("cmake") is None, reason="no cmake here")
def test_cmake_package(digits: Path, images: np.ndarray, tmp_path: Path) -> None:
    ran("cmake", "-B", tmp_path / "build", "-D", f"CMAKE_PREFIX_PATH={digits}", EXAMPLES / "cmake", cwd=tmp_path)
    ran("cmake", "--build", tmp_path / "build", cwd=tmp_path)
    pixels = np.round(images * 255).astype(np.float32) / 255
    printed = ran(tmp_path / "build/classify", *write_pgm(tmp_path, images), cwd=tmp_path)
    assert [int(line) for line in printed.split()] == answers(digits, pixels)


@needs_cc
@pytest.mark.skipif(which("cmake") is None, reason="no cmake here")
def test_cmake_refuses_another_system(digits: Path, tmp_path: Path) -> None:
    from qcompiler.backends.embed import cmake_package

    (tmp_path / "qcompiler_modelConfig.cmake").write_text(cmake_package("model", "x86_64-pc-windows-msvc", "windows", "model.lib"))
    command = ["cmake", "-B", tmp_path / "build", "-D", f"CMAKE_PREFIX_PATH={tmp_path}", EXAMPLES / "cmake"]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    assert done.returncode != 0
    assert "'model' is compiled for Windows" in " ".join(done.stderr.split())


@pytest.mark.skipif(which("cargo") is None, reason="no cargo here")
def test_rust_build_script(digits: Path, images: np.ndarray, tmp_path: Path) -> None:
    command = ("cargo", "run", "--release", "--offline", "--quiet", "--manifest-path", EXAMPLES / "rust/Cargo.toml")
    printed = ran(*command, cwd=tmp_path, given=as_text(images), QCOMPILER_MODEL=str(digits), CARGO_TARGET_DIR=str(tmp_path / "target"))
    assert [int(line) for line in printed.split()] == answers(digits, images)


def test_python_classifies_jpeg_files(tmp_path: Path) -> None:
    """Digits enlarged eightfold and stored as JPEG: Pillow's box filter brings them back, but for what JPEG loses."""
    from command_line import invoke
    from PIL import Image

    options = ("--calib", MODELS / "digits_calib.npz", "--input", "u8", "--layout", "nhwc", "--output", "argmax")
    result = invoke(MODELS / "digits_resnet.onnx", *options, "-o", tmp_path / "digits")
    assert result.exit_code == 0, result.output
    data = np.load(MODELS / "digits_eval.npz")
    for n, image in enumerate(data["input"][:100]):
        enlarged = np.kron(np.round(image[0] * 255).astype(np.uint8), np.ones((8, 8), np.uint8))
        Image.fromarray(enlarged).save(tmp_path / f"{n:03}.jpg", quality=90)
    printed = ran(sys.executable, EXAMPLES / "python/classify_image.py", "digits", *(f"{n:03}.jpg" for n in range(100)), cwd=tmp_path)
    found = [int(line.split()[0]) for line in printed.splitlines()]
    assert sum(a == b for a, b in zip(found, data["labels"])) >= 96


@pytest.fixture(scope="module")
def sound() -> ModuleType:
    spec = importlib.util.spec_from_file_location("classify_sound", EXAMPLES / "python/classify_sound.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def recorded(path: Path, second: np.ndarray, rate: int = 16000) -> Path:
    """Numbers within [-1, 1] as a WAV file."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.round(32767 * second).astype("<i2").tobytes())
    return path


def test_features_of_sound_follow_their_equations(sound: ModuleType) -> None:
    """One frame, by the sums of the docstring."""
    x = np.random.default_rng(0).standard_normal(16000)
    t, n, f, b, k = 7, np.arange(480), np.arange(257), np.arange(40), np.arange(10)
    windowed = np.sin(np.pi * n / 480) ** 2 * x[320 * t + n]
    spectrum = np.abs(np.exp(-2j * np.pi * np.outer(f, n) / 512) @ windowed)
    centres = 700 * (np.exp(np.linspace(1127 * np.log(1 + 20 / 700), 1127 * np.log(1 + 4000 / 700), 42) / 1127) - 1)
    heard = 1127 * np.log(1 + np.maximum(f, 1e-9) * 31.25 / 700)
    marks = 1127 * np.log(1 + centres / 700)
    bands = np.array([np.interp(heard, marks[i : i + 3], [0, 1, 0]) @ spectrum for i in b])
    expected = np.sqrt(2 / 40) * np.cos(np.pi * np.outer(k, 2 * b + 1) / 80) @ np.log(bands + 1e-6)
    found = sound.features(x)
    assert found.shape == (49, 10)
    assert found.dtype == np.float32
    assert np.allclose(found[t], expected, rtol=0, atol=1e-4)


def test_sound_of_another_rate_is_refused(sound: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="16 bits at 8000 Hz, expected 16 bits at 16000 Hz: convert it"):
        sound.samples(str(recorded(tmp_path / "slow.wav", np.zeros(8000), 8000)))


def test_python_classifies_wav_files(sound: ModuleType, tmp_path: Path) -> None:
    """Noise is what the network was trained to hear as silence; for every file the word is that of the float network."""
    zoo = ROOT.parent / "shared" / "zoo"
    if not zoo.is_dir():
        pytest.skip("needs the network and the data of ../shared/zoo")
    import onnxruntime

    data = np.load(zoo / "kws01_calib.npz")
    calib = ((data["mfcc_int8"].astype(np.float32) - 83) * 0.58470).reshape(-1, 1, 49, 10)
    session = onnxruntime.InferenceSession(str(zoo / "kws_dscnn.onnx"))
    name = session.get_inputs()[0].name
    qcompiler.compile(zoo / "kws_dscnn.onnx", calibration=[{name: calib[:64]}]).save(tmp_path / "words")
    random = np.random.default_rng(0)
    sounds = {"noise": 0.3 * random.standard_normal(16000), "tone": np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)}
    files = [recorded(tmp_path / f"{label}.wav", np.clip(second, -1, 1)) for label, second in sounds.items()]
    printed = ran(sys.executable, EXAMPLES / "python/classify_sound.py", "words", *(f.name for f in files), cwd=tmp_path)
    words = [line.split()[0] for line in printed.splitlines()]
    heard = [session.run(None, {name: sound.features(sound.samples(str(f))).reshape(1, 1, 49, 10)})[0].argmax() for f in files]
    assert words[0] == "(silence)"
    assert words == [sound.WORDS[i] for i in heard]
