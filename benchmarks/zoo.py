"""The networks and data of ../shared/zoo with their preprocessing, for accuracy, exactness and speed. Nothing of them is part of the project."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

ZOO = Path(__file__).resolve().parents[2] / "shared" / "zoo"
Array = NDArray[Any]


@cache
def loaders() -> ModuleType:
    """load_data.py of the zoo."""
    spec = importlib.util.spec_from_file_location("load_data", ZOO / "load_data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Network:
    """A classifier: its file, its data and how raw data becomes its input. `drop` is the accuracy, in points, it may lose."""

    name: str
    data: str
    preprocess: Callable[[Array], Array]
    drop: float
    packed: bool = False

    @property
    def path(self) -> Path:
        """The ONNX file."""
        return ZOO / f"{self.name}.onnx"

    def raw(self, part: str) -> tuple[Array, Array]:
        """(raw inputs, labels) of the calib or eval part; labels are -1 where the file has none."""
        file = ZOO / f"{self.data}_{part}.npz"
        if self.packed:
            return loaders().load_packed_jpeg(file)
        archive = np.load(file)
        inputs = archive[archive.files[0]]
        return inputs, archive["labels"] if "labels" in archive.files else np.full(len(inputs), -1)

    def batches(self, part: str, limit: int | None = None) -> Iterator[tuple[Array, int]]:
        """(input [1, ...] float32, label), one sample at a time."""
        inputs, labels = self.raw(part)
        for x, label in list(zip(inputs, labels))[:limit]:
            yield self.preprocess(x[None]), int(label)


def _imagenet(x: Array) -> Array:
    return loaders().norm_imagenet(x)


def _caffe(x: Array) -> Array:
    return loaders().norm_caffe_bgr(x)


def _raw(x: Array) -> Array:
    return np.ascontiguousarray(x.astype(np.float32).transpose(0, 3, 1, 2))


def _kws(x: Array) -> Array:
    return ((x.astype(np.float32) - 83) * 0.58470).reshape(len(x), 1, 49, 10)


NETWORKS = {
    n.name: n
    for n in (
        Network("cifar10_resnet20", "cifar10", _imagenet, 0.3),
        Network("cifar10_resnet8_mlperftiny", "cifar10", _raw, 0.3),
        Network("cifar10_resnet18", "cifar10", _imagenet, 0.3),
        Network("kws_dscnn", "kws01", _kws, 0.5),
        Network("imagenet_mobilenetv2", "imagenet_samples", _imagenet, 0.7, packed=True),
        Network("imagenet_squeezenet11", "imagenet_samples", _caffe, 0.6, packed=True),
    )
}
