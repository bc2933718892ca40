"""A folder of images as data: decoded, brought to the network's size and normalized, (scale * pixel - mean) / std."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import UsageError

from .data import CHUNK, Batch, Dataset, Input

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
CHANNELS = {"rgb": 3, "bgr": 3, "gray": 1}


@dataclass(frozen=True)
class Preprocessing:
    """How pixels become numbers. None: taken from the input's shape."""

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 1 / 255
    color: str | None = None
    layout: str | None = None
    resize: str = "crop"
    fraction: float = 1.0


@dataclass(frozen=True)
class Frame:
    """The image that an input takes."""

    height: int
    width: int
    color: str
    layout: str


def from_folder(folder: Path, wanted: Input, labels: str | None, how: Preprocessing) -> Dataset:
    """The images below `folder`, sorted by path. With labels, each subfolder is a class: its number, or its place among them."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not paths:
        raise UsageError(f"'{folder}' holds no images; expected files ending in {', '.join(sorted(SUFFIXES))}")
    frame = frame_of(wanted, how)
    answers = classes(folder, paths) if labels is not None else None

    def read() -> Iterator[Batch]:
        step = CHUNK * wanted.rows
        for n in range(0, len(paths), step):
            pixels = np.stack([load(p, frame, how) for p in paths[n : n + step]])
            yield Batch({wanted.name: pixels.astype(wanted.dtype)}, None if answers is None else answers[n : n + step])

    return Dataset(f"'{folder}'", read, len(paths) // wanted.rows)


def classes(folder: Path, paths: list[Path]) -> NDArray[np.int64]:
    """The class of each image: the number that its subfolder is called, else the subfolder's place in alphabetical order."""
    names = [p.relative_to(folder).parts[0] for p in paths]
    if any(len(p.relative_to(folder).parts) < 2 for p in paths):
        raise UsageError(f"'{folder}' holds images outside of class folders; for labels, put each image in the folder of its class")
    known = sorted(set(names))
    numbers = {n: int(n) if all(k.isdigit() for k in known) else i for i, n in enumerate(known)}
    return np.array([numbers[n] for n in names], np.int64)


def frame_of(wanted: Input, how: Preprocessing) -> Frame:
    """Height, width, channels and their order, from the input's shape and the options."""
    if len(wanted.shape) != 4:
        raise UsageError(f"images feed an input of four dimensions, found {wanted}; give an .npz archive or a function")
    layout = how.layout or ("nchw" if wanted.shape[1] in (1, 3) else "nhwc")
    _, a, b, c = wanted.shape
    height, width, channels = (b, c, a) if layout == "nchw" else (a, b, c)
    color = how.color or ("gray" if channels == 1 else "rgb")
    if CHANNELS[color] != channels:
        raise UsageError(f"{wanted} has {channels} channels in layout {layout}, but {color} images have {CHANNELS[color]}; see --layout and --color")
    for name, values in (("--mean", how.mean), ("--std", how.std)):
        if len(values) not in (1, channels):
            raise UsageError(f"{name} has {len(values)} values, expected 1 or {channels}, one per channel")
    return Frame(height, width, color, layout)


def load(path: Path, frame: Frame, how: Preprocessing) -> NDArray[np.float32]:
    """One image as the network takes it."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            sized = resized(image.convert("L" if frame.color == "gray" else "RGB"), frame, how)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError, SyntaxError) as problem:
        raise UsageError(f"'{path}' cannot be read as an image ({problem}); remove or replace it") from problem
    return normalized(np.asarray(sized, np.float32).reshape(frame.height, frame.width, -1), frame, how)


def normalized(pixels: NDArray[np.float32], frame: Frame, how: Preprocessing) -> NDArray[np.float32]:
    """(scale * pixel - mean) / std, channels in the network's order."""
    ordered = pixels[..., ::-1] if frame.color == "bgr" else pixels
    real = (ordered * np.float32(how.scale) - np.array(how.mean, np.float32)) / np.array(how.std, np.float32)
    return np.ascontiguousarray(real.transpose(2, 0, 1) if frame.layout == "nchw" else real, np.float32)


def resized(image: Image, frame: Frame, how: Preprocessing) -> Image:
    """The image at the network's size: stretched, padded with black, or the middle `fraction` of it, cropped."""
    from PIL import Image, ImageOps

    size, bilinear = (frame.width, frame.height), Image.Resampling.BILINEAR
    if how.resize == "stretch":
        return image.resize(size, bilinear)
    if how.resize == "pad":
        return ImageOps.pad(image, size, bilinear)
    whole = ImageOps.fit(image, (round(frame.width / how.fraction), round(frame.height / how.fraction)), bilinear)
    left, top = (whole.width - frame.width) // 2, (whole.height - frame.height) // 2
    return whole.crop((left, top, left + frame.width, top + frame.height))
