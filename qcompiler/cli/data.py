"""Calibration and evaluation data: an .npz archive, a folder of images or a Python function, read as a stream of batches.

Every source can be read more than once and is checked again wherever it is used: by calibration and by the program, which
know what each input must look like. Here, only what belongs to the source itself is checked.
"""

from __future__ import annotations

import importlib
import os
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import UsageError

Array = NDArray[Any]
KINDS = "expected an .npz archive, a folder of images or package.module:function"
CHUNK = 16
"""Samples handed on together."""


@dataclass(frozen=True)
class Input:
    """What a program takes under `name`; its own leading dimension is one sample."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    high: int | None = None
    """The greatest integer that is taken, where not all are."""

    @property
    def rows(self) -> int:
        """Extent of the leading axis of one sample."""
        return self.shape[0] if self.shape else 1

    def __str__(self) -> str:
        return f"'{self.name}' {self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Batch:
    """Inputs by name, one or more samples along their leading axis, and the right answers where they were asked for."""

    feeds: dict[str, Array]
    labels: Array | None = None


@dataclass(frozen=True)
class Dataset:
    """A stream of batches that can be read again; `count` samples in all, where that is known."""

    source: str
    read: Callable[[], Iterator[Batch]]
    count: int | None = None

    def batches(self) -> Iterator[Batch]:
        """The batches. UsageError where there are none."""
        batch = None
        for batch in self.read():
            yield batch
        if batch is None:
            raise UsageError(f"{self.source} holds no samples: give at least one, better a few hundred")

    def labelled(self, name: str) -> Dataset:
        """The same with the right answers beside the inputs, under `name`."""

        def read() -> Iterator[Batch]:
            return (Batch(b.feeds if b.labels is None else {**b.feeds, name: b.labels}, b.labels) for b in self.read())

        return Dataset(self.source, read, self.count)

    def __iter__(self) -> Iterator[dict[str, Array]]:
        return (b.feeds for b in self.batches())


def first(data: Dataset, inputs: Sequence[Input], limit: int | None) -> Dataset:
    """`data` one sample at a time, of which the first `limit` (None: all)."""

    def read() -> Iterator[Batch]:
        return islice((s for b in data.read() for s in samples(b, inputs)), limit)

    return Dataset(data.source, read, data.count if limit is None or data.count is None else min(limit, data.count))


def samples(batch: Batch, inputs: Sequence[Input]) -> Iterator[Batch]:
    """The single samples of a batch: `rows` of each input and of the labels."""
    names, rows = [i.name for i in inputs], inputs[0].rows
    count = max(1, len(batch.feeds[names[0]]) // rows) if inputs[0].shape else 1
    for n in range(count):
        feeds = {i.name: batch.feeds[i.name][n * i.rows : (n + 1) * i.rows] if i.shape else batch.feeds[i.name] for i in inputs}
        yield Batch(feeds, None if batch.labels is None else batch.labels[n * rows : (n + 1) * rows])


def open_data(source: str, inputs: Sequence[Input], labels: str | None, images: Callable[[Path, Input, str | None], Dataset]) -> Dataset:
    """The data set that `source` names; `labels` is the key of the right answers, `images` reads a folder."""
    path = Path(source)
    if path.is_dir():
        return images(path, only(inputs, path), labels)
    if path.is_file():
        return from_archive(path, inputs, labels)
    if ":" in source:
        return from_function(source, inputs, labels)
    raise UsageError(f"'{source}' does not exist: {KINDS}")


def only(inputs: Sequence[Input], path: Path) -> Input:
    """The single input that a folder of images can feed."""
    if len(inputs) != 1:
        raise UsageError(f"the images of '{path}' feed one input, but the network has {listed(inputs)}; give an .npz archive keyed by these names")
    return inputs[0]


def listed(inputs: Sequence[Input]) -> str:
    """The inputs, for a message."""
    return ", ".join(map(str, inputs))


def checked_names(found: Mapping[str, object], inputs: Sequence[Input], labels: str | None, source: str) -> None:
    """UsageError where an input or the labels are missing."""
    missing = [i for i in inputs if i.name not in found]
    names = ", ".join(map(repr, found)) or "nothing"
    if missing:
        raise UsageError(f"{source} lacks {listed(missing)}: expected {listed(inputs)}, found {names}; name the arrays as the network does")
    if labels is not None and labels not in found:
        raise UsageError(f"{source} has no labels '{labels}', found {names}; say with --labels which of them holds the labels")


# --- archives ---------------------------------------------------------------------------------------------------------


def from_archive(path: Path, inputs: Sequence[Input], labels: str | None) -> Dataset:
    """An .npz archive keyed by input name, samples along the leading axis of every array; other arrays are ignored."""
    source = f"'{path}'"
    arrays = read_archive(path, [i.name for i in inputs] + ([labels] if labels else []))
    checked_names(arrays, inputs, labels, source)
    counts = {i.name: leading(arrays[i.name], i, source) for i in inputs}
    if len(set(counts.values())) > 1:
        raise UsageError(f"the arrays of {source} hold different numbers of samples: {counts}; give as many of each")
    count = next(iter(counts.values()))
    if labels is not None and len(arrays[labels]) != count * inputs[0].rows:
        raise UsageError(f"{source} holds {len(arrays[labels])} labels for {count} samples; give one label to each sample")

    def read() -> Iterator[Batch]:
        for n in range(0, count, CHUNK):
            feeds = {i.name: arrays[i.name][n * i.rows : (n + CHUNK) * i.rows] for i in inputs}
            yield Batch(feeds, arrays[labels][n * inputs[0].rows : (n + CHUNK) * inputs[0].rows] if labels else None)

    return Dataset(source, read, count)


def leading(array: Array, wanted: Input, source: str) -> int:
    """How many samples `array` holds."""
    if array.ndim != len(wanted.shape) or array.shape[1:] != wanted.shape[1:] or len(array) % wanted.rows:
        rows = f"a multiple of {wanted.rows}" if wanted.rows > 1 else "samples"
        dims = ",".join([rows, *map(str, wanted.shape[1:])])
        raise UsageError(f"{source}: expected '{wanted.name}' of shape [{dims}], found {list(array.shape)}; preprocess it as the network expects")
    return len(array) // wanted.rows


def read_archive(path: Path, wanted: Sequence[str]) -> dict[str, Array]:
    """The arrays called `wanted`, and of the others just the names."""
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise UsageError(f"'{path}' holds a single array without a name; save it with numpy.savez, keyed by input name")
        with archive:
            return {name: archive[name] if name in wanted else np.empty(0) for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as problem:
        raise UsageError(f"'{path}' cannot be read ({problem}): {KINDS}") from problem


# --- functions --------------------------------------------------------------------------------------------------------


def from_function(name: str, inputs: Sequence[Input], labels: str | None) -> Dataset:
    """``package.module:function``, which yields {input name: array}, one sample or a batch at a time."""
    function, source = find_function(name), f"'{name}'"

    def read() -> Iterator[Batch]:
        for item in yielded(function, source):
            checked_names(item, inputs, labels, source)
            arrays = {i.name: np.asarray(item[i.name]) for i in inputs}
            yield Batch(arrays, np.atleast_1d(np.asarray(item[labels])) if labels else None)

    return Dataset(source, read)


def yielded(function: Callable[[], Any], source: str) -> Iterator[Mapping[str, Any]]:
    """What the user's function yields; its own errors are told as such."""
    try:
        for item in function():
            if not isinstance(item, Mapping):
                raise UsageError(f"{source} yields {type(item).__name__}; expected dicts of input name to array")
            yield item
    except UsageError:
        raise
    except Exception as problem:
        raise UsageError(f"{source} failed: {type(problem).__name__}: {problem}") from problem


def find_function(name: str) -> Callable[[], Any]:
    """The function of a module; modules of the working directory are found too."""
    module, _, attribute = name.rpartition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module), attribute)
    except Exception as problem:
        raise UsageError(f"'{name}' cannot be imported ({type(problem).__name__}: {problem}): {KINDS}") from problem
    if not callable(function):
        raise UsageError(f"'{name}' is a {type(function).__name__}, not a function; {KINDS}")
    found: Callable[[], Any] = function
    return found
