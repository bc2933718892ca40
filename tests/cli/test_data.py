"""Data sets: archives, folders of images, functions; what comes out, and what is said of bad ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qcompiler.cli.data import Batch, Dataset, Input, first, open_data
from qcompiler.cli.images import Preprocessing, from_folder
from qcompiler.cli.options import read_data
from qcompiler.errors import UsageError

PLAIN = Preprocessing()
X = Input("x", (1, 2), "float32")


def save(path: Path, **arrays: object) -> str:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return str(path)


def gathered(data: Dataset, name: str = "x") -> np.ndarray:
    return np.concatenate([f[name] for f in data])


def test_archive_is_read_in_order_and_again(tmp_path: Path) -> None:
    values = np.arange(200, dtype=np.float32).reshape(100, 2)
    data = read_data(save(tmp_path / "a.npz", x=values, other=np.zeros(3)), [X], PLAIN)
    assert data.count == 100
    for _ in range(2):
        assert np.array_equal(gathered(data), values)


def test_labels_go_with_their_samples(tmp_path: Path) -> None:
    values = np.arange(80, dtype=np.float32).reshape(40, 2)
    source = save(tmp_path / "a.npz", x=values, y=np.arange(40))
    data = first(read_data(source, [X], PLAIN, "y"), [X], 25)
    found = list(data.batches())
    assert len(found) == data.count == 25
    assert all(b.labels is not None and b.feeds["x"].shape == (1, 2) and b.feeds["x"][0, 0] == 2 * b.labels[0] for b in found)


def test_samples_of_several_rows(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.float32).reshape(12, 2)
    wanted = Input("x", (3, 2), "float32")
    data = first(read_data(save(tmp_path / "a.npz", x=values, y=np.arange(12)), [wanted], PLAIN, "y"), [wanted], None)
    assert data.count == 4
    assert [b.labels.tolist() for b in data.batches() if b.labels is not None] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]


@pytest.mark.parametrize(
    ("arrays", "labels", "expected"),
    [
        ({"image": np.zeros((2, 2))}, None, "lacks 'x' float32[1,2]: expected 'x' float32[1,2], found 'image'"),
        ({"x": np.zeros((2, 3))}, None, "expected 'x' of shape [samples,2], found [2, 3]"),
        ({"x": np.zeros((2, 2)), "digits": np.zeros(2)}, "y", "has no labels 'y', found 'x', 'digits'"),
        ({"x": np.zeros((2, 2)), "y": np.zeros(3)}, "y", "holds 3 labels for 2 samples"),
        ({"x": np.zeros((0, 2))}, None, "holds no samples"),
        ({"x": np.array([{"a": 1}, None])}, None, "cannot be read"),
    ],
)
def test_bad_archives(tmp_path: Path, arrays: dict[str, np.ndarray], labels: str | None, expected: str) -> None:
    source = save(tmp_path / "a.npz", **arrays)
    with pytest.raises(UsageError) as problem:
        list(read_data(source, [X], PLAIN, labels))
    assert expected in str(problem.value)


def test_inputs_must_hold_as_many_samples(tmp_path: Path) -> None:
    source = save(tmp_path / "a.npz", x=np.zeros((4, 2)), z=np.zeros((3, 2)))
    with pytest.raises(UsageError, match="different numbers of samples: {'x': 4, 'z': 3}"):
        read_data(source, [X, Input("z", (1, 2), "float32")], PLAIN)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04 cut short"])
def test_damaged_archives(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="cannot be read"):
        read_data(str(path), [X], PLAIN)


def test_array_without_a_name(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 2)))
    with pytest.raises(UsageError, match=r"single array without a name.*savez"):
        read_data(str(tmp_path / "a.npy"), [X], PLAIN)


def test_missing_source() -> None:
    with pytest.raises(UsageError, match=r"'nowhere.npz' does not exist: expected an .npz archive, a folder of images or"):
        read_data("nowhere.npz", [X], PLAIN)


# --- functions --------------------------------------------------------------------------------------------------------

FUNCTIONS = """
import numpy as np
number = 3
def good():
    for i in range(5):
        yield {"x": np.full((1, 2), i, np.float32), "y": i}
def nothing():
    return []
def pairs():
    yield 1, 2
def misnamed():
    yield {"image": np.zeros((1, 2))}
def broken():
    raise RuntimeError("disk on fire")
    yield
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "cli_test_feeds.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "cli_test_feeds"


def test_function_is_called_for_each_reading(module: str) -> None:
    data = read_data(f"{module}:good", [X], PLAIN, "y")
    for _ in range(2):
        assert gathered(data)[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert [b.labels.tolist() for b in data.batches() if b.labels is not None] == [[0], [1], [2], [3], [4]]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nothing", "holds no samples"),
        ("pairs", "yields tuple; expected dicts of input name to array"),
        ("misnamed", "lacks 'x'"),
        ("broken", "failed: RuntimeError: disk on fire"),
        ("number", "is a int, not a function"),
        ("absent", "cannot be imported (AttributeError"),
    ],
)
def test_bad_functions(module: str, name: str, expected: str) -> None:
    with pytest.raises(UsageError) as problem:
        list(read_data(f"{module}:{name}", [X], PLAIN))
    assert expected in str(problem.value)


def test_missing_module() -> None:
    with pytest.raises(UsageError, match="cannot be imported .ModuleNotFoundError"):
        read_data("no_such_module_here:f", [X], PLAIN)


# --- images -----------------------------------------------------------------------------------------------------------

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def folder(tmp_path: Path, names: list[str], pixels: np.ndarray = PIXELS) -> Path:
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return tmp_path


def image_input(*shape: int) -> Input:
    return Input("x", shape, "float32")


def test_image_of_the_right_size_is_normalized(tmp_path: Path) -> None:
    how = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    found = gathered(from_folder(folder(tmp_path, ["a.png"]), image_input(1, 3, 6, 8), None, how))
    expected = ((PIXELS / 255 - how.mean) / how.std).transpose(2, 0, 1)[None]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_raw_bgr_in_channels_last(tmp_path: Path) -> None:
    how = Preprocessing(scale=1, color="bgr", mean=(103.0, 116.0, 123.0))
    found = gathered(from_folder(folder(tmp_path, ["a.png"]), image_input(1, 6, 8, 3), None, how))
    assert np.array_equal(found[0], PIXELS[..., ::-1].astype(np.float32) - np.float32([103, 116, 123]))


def test_gray_is_taken_from_the_shape(tmp_path: Path) -> None:
    found = gathered(from_folder(folder(tmp_path, ["a.png"], PIXELS[..., 0]), image_input(1, 1, 6, 8), None, Preprocessing(scale=1)))
    assert np.array_equal(found[0, 0], PIXELS[..., 0])


@pytest.mark.parametrize(
    ("resize", "fraction", "columns"), [("crop", 1.0, slice(1, 7)), ("crop", 0.5, None), ("stretch", 1.0, None), ("pad", 1.0, None)]
)
def test_resizing_gives_the_size(tmp_path: Path, resize: str, fraction: float, columns: slice | None) -> None:
    how = Preprocessing(scale=1, resize=resize, fraction=fraction)
    found = gathered(from_folder(folder(tmp_path, ["a.png"]), image_input(1, 6, 6, 3), None, how))
    assert found.shape == (1, 6, 6, 3)
    if columns is not None:
        assert np.array_equal(found[0], PIXELS[:, columns])


def test_padding_is_black(tmp_path: Path) -> None:
    white = np.full((4, 8, 3), 255, np.uint8)
    found = gathered(from_folder(folder(tmp_path, ["a.png"], white), image_input(1, 8, 8, 3), None, Preprocessing(resize="pad")))
    assert (found[0, :2] == 0).all()
    assert (found[0, 2:6] == 1).all()


def test_images_are_sorted_and_counted(tmp_path: Path) -> None:
    names = [f"{i:02}.png" for i in range(20)]
    for i, name in enumerate(names):
        folder(tmp_path, [name], np.full((2, 2, 3), i, np.uint8))
    data = from_folder(tmp_path, image_input(1, 3, 2, 2), None, Preprocessing(scale=1))
    assert data.count == 20
    assert gathered(data)[:, 0, 0, 0].tolist() == list(range(20))


@pytest.mark.parametrize(
    ("names", "expected"),
    [(["cat/1.png", "dog/1.png", "dog/2.png"], [0, 1, 1]), (["10/a.png", "3/a.png"], [10, 3]), (["1/a.png", "b/a.png"], [0, 1])],
)
def test_subfolders_are_classes(tmp_path: Path, names: list[str], expected: list[int]) -> None:
    data = from_folder(folder(tmp_path, names), image_input(1, 3, 6, 8), "folders", PLAIN)
    (batch,) = data.batches()
    assert batch.labels is not None
    assert batch.labels.tolist() == expected


@pytest.mark.parametrize(
    ("shape", "how", "expected"),
    [
        ((1, 12), PLAIN, "images feed an input of four dimensions"),
        ((1, 3, 6, 8), Preprocessing(color="gray"), "has 3 channels in layout nchw, but gray images have 1"),
        ((1, 16, 6, 8), PLAIN, "channels in layout nhwc"),
        ((1, 3, 6, 8), Preprocessing(mean=(0.5, 0.5)), "--mean has 2 values, expected 1 or 3"),
        ((1, 3, 6, 8), Preprocessing(std=(1.0, 1.0)), "--std has 2 values, expected 1 or 3"),
    ],
)
def test_flags_that_do_not_fit(tmp_path: Path, shape: tuple[int, ...], how: Preprocessing, expected: str) -> None:
    with pytest.raises(UsageError) as problem:
        from_folder(folder(tmp_path, ["a.png"]), image_input(*shape), None, how)
    assert expected in str(problem.value)


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no images; expected files ending in .bmp"):
        from_folder(tmp_path, image_input(1, 3, 6, 8), None, PLAIN)
    (tmp_path / "a.png").write_bytes(b"not a picture")
    with pytest.raises(UsageError, match=r"a.png' cannot be read as an image"):
        list(from_folder(tmp_path, image_input(1, 3, 6, 8), None, PLAIN))
    with pytest.raises(UsageError, match="outside of class folders"):
        from_folder(tmp_path, image_input(1, 3, 6, 8), "folders", PLAIN)


def test_folder_needs_a_single_input(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="feed one input, but the network has 'x' .*, 'z'"):
        open_data(str(folder(tmp_path, ["a.png"])), [X, Input("z", (1,), "int64")], None, lambda *_: Dataset("", lambda: iter([Batch({})])))
