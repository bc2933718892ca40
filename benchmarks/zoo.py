"""The networks and data of ../shared/zoo with their preprocessing, for accuracy, exactness and speed. Nothing of them is part of the project."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from scipy.stats import spearmanr

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


# --- networks that are judged by one number, each over any inputs ------------------------------------------------------

Feeds = Mapping[str, Array]
Judge = Callable[[Sequence[Array]], float]


@dataclass(frozen=True)
class Data:
    """Inputs one sample at a time (leading dimension 1), and `judge`: the metric of the first output of the first so many samples."""

    calibration: Sequence[Feeds]
    evaluation: Sequence[Feeds]
    judge: Judge
    right: Sequence[Array] | None = None
    """The right classes of calibration samples, where they are known."""
    group: int = 1
    """Consecutive samples that only count together: two sentences of a pair."""

    def first(self, limit: int | None) -> Sequence[Feeds]:
        """The samples of the first `limit` groups."""
        return self.evaluation if limit is None else self.evaluation[: limit * self.group]


@dataclass(frozen=True)
class Metric:
    """What the number means. `loss` of a float and a compiled figure is positive where the latter is worse, in `unit`."""

    name: str
    unit: str
    loss: Callable[[float, float], float]
    tolerance: float
    """The loss that the issue calls "within 1 point (1 %) of float"."""


def percent_more(floats: float, found: float) -> float:
    """By how many percent the second figure is greater."""
    return 100 * (found / floats - 1)


def less(floats: float, found: float) -> float:
    """By how much the second figure is smaller."""
    return floats - found


TOP1 = Metric("top-1", "points", less, 1.0)
SPEARMAN = Metric("Spearman", "", less, 0.01)
PERPLEXITY = Metric("perplexity", "%", percent_more, 1.0)


@dataclass(frozen=True)
class Task:
    """A network, its data, its metric, the metric of the float network on all data known for it, and the loss allowed per precision."""

    name: str
    path: Path
    metric: Metric
    load: Callable[[], Data]
    value: float
    allowed: Mapping[str, float]


def classification(network: Network) -> Task:
    """A classifier of `NETWORKS` as a task."""

    def load() -> Data:
        name = onnx.load(network.path, load_external_data=False).graph.input[0].name
        evaluation = list(network.batches("eval"))
        calibration = list(network.batches("calib"))
        right = None if any(y < 0 for _, y in calibration) else [np.array([y]) for _, y in calibration]
        return Data([{name: x} for x, _ in calibration], [{name: x} for x, _ in evaluation], top1_of(np.array([y for _, y in evaluation])), right)

    return Task(network.name, network.path, TOP1, load, float("nan"), {"w8a8": network.drop})


def top1_of(labels: Array) -> Judge:
    """Percent of samples whose greatest logit is that of the label."""
    return lambda outputs: 100 * float(np.mean([int(o.argmax()) == y for o, y in zip(outputs, labels)]))


def similarity_of(scores: Array) -> Judge:
    """Spearman's correlation of people's scores with the cosine of each pair of embeddings (a, b, a, b ...)."""

    def judge(outputs: Sequence[Array]) -> float:
        pairs = zip(outputs[::2], outputs[1::2])
        cosines = [float((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b))) for a, b in pairs]
        return float(spearmanr(cosines, scores[: len(cosines)]).statistic)

    return judge


def perplexity_of(targets: Array) -> Judge:
    """exp of the mean negative log likelihood of the targets; those below 0 are padding."""

    def judge(outputs: Sequence[Array]) -> float:
        losses = [surprise(logits[0].astype(np.float64), t) for logits, t in zip(outputs, targets)]
        return float(np.exp(np.concatenate(losses).mean()))

    return judge


def surprise(logits: Array, targets: Array) -> Array:
    """-log softmax(logits)[target] of every position that has a target."""
    seen = targets >= 0
    z = logits[seen] - logits[seen].max(-1, keepdims=True)
    return np.log(np.exp(z).sum(-1)) - z[np.arange(len(z)), targets[seen].astype(np.int64)]


def _dinov2(x: Array) -> Array:
    return loaders().norm_imagenet(loaders().resize_u8(x, 112))


def _sentences() -> Data:
    calib, test = np.load(ZOO / "stsb_train_calib_tok64.npz"), np.load(ZOO / "stsb_test_tok64.npz")

    def feeds(ids: Array, mask: Array) -> list[Feeds]:
        wide = ids.astype(np.int64), mask.astype(np.int64)
        return [{"input_ids": i[None], "attention_mask": m[None]} for i, m in zip(*wide)]

    a, b = feeds(test["ids_a"], test["mask_a"]), feeds(test["ids_b"], test["mask_b"])
    evaluation = [side for pair in zip(a, b) for side in pair]
    return Data(feeds(calib["ids"], calib["mask"]), evaluation, similarity_of(test["scores"]), group=2)


def _stories() -> Data:
    calib, test = (np.load(ZOO / f"tinystories_{part}_tok512_len256.npz") for part in ("calib", "eval"))
    calibration, evaluation = ([{"tokens": t[None]} for t in z["tokens"].astype(np.int64)] for z in (calib, test))
    return Data(calibration, evaluation, perplexity_of(test["targets"]))


_VIT = {"w8a8": 0.3, "w6a6": 0.8, "w4a4": 4.0}
_DINO = {"w8a8": 0.8, "w6a6": 4.0, "w4a4": 25.0}
_DINO_PATH = ZOO / "dinov2s14_cifar10_112_w16.onnx"

SEQUENCE_NETWORKS = {
    t.name: t
    for t in (
        Task("cifar10_vit", ZOO / "cifar10_vit.onnx", TOP1, classification(Network("cifar10_vit", "cifar10", _imagenet, 0.3)).load, 81.85, _VIT),
        Task("dinov2s14", _DINO_PATH, TOP1, classification(Network(_DINO_PATH.stem, "cifar10", _dinov2, 0.8)).load, 74.50, _DINO),
        Task("minilm_l6_sts", ZOO / "minilm_l6_sts.onnx", SPEARMAN, _sentences, 0.8203, {"w8a8": 0.004}),
        Task("stories260k_lm", ZOO / "stories260k_lm.onnx", PERPLEXITY, _stories, 4.865, {"w8a8": 1.0, "w4a8": 6.0}),
    )
}
TASKS = {**SEQUENCE_NETWORKS, **{n.name: classification(n) for n in NETWORKS.values()}}
