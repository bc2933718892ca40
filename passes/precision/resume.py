"""Sensitivities are sums over samples. They are kept in a file as they grow, so that a run that was interrupted goes on where it was.

The file is named by the SHA-256 of the network, of the rounded weights, of the samples and of what judges answers.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from qcompiler.ir.graph import Graph
from qcompiler.ir.serialize import graph_to_bytes

from .loss import Judge
from .simulate import Array, Feeds, Weights

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Sums:
    """Over so many `samples`: of losses and of squared noise, one for each change, of products of directions, and of squared answers."""

    samples: int
    loss: Floats
    noise: Floats
    pairs: Floats
    power: float

    def plus(self, y: Array, others: Sequence[Array], judge: Judge) -> Sums:
        """With one more sample, whose answer is `y` and, of each change alone, one of `others`."""
        h = np.stack([judge.directions(y, o) for o in others])
        loss = self.loss + [judge.loss(y, o) for o in others]
        noise = self.noise + [float(((o.astype(np.float64) - y) ** 2).sum()) for o in others]
        return Sums(self.samples + 1, loss, noise, self.pairs + h @ h.T, self.power + float((y.astype(np.float64) ** 2).sum()))


class Kept:
    """The sums in a file of `folder`."""

    def __init__(self, folder: Path, digest: str) -> None:
        self.path = folder / f"{digest}.npz"

    def read(self) -> Sums | None:
        """None where there are none, or the file is broken."""
        try:
            with np.load(self.path) as f:
                return Sums(int(f["samples"]), f["loss"], f["noise"], f["pairs"], float(f["power"]))
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return None

    def write(self, sums: Sums) -> None:
        """In one piece or not at all; where nothing can be written, nothing is kept."""
        draft = self.path.with_name(f".{self.path.stem}-{os.getpid()}.npz")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(draft, samples=sums.samples, loss=sums.loss, noise=sums.noise, pairs=sums.pairs, power=sums.power)
            draft.replace(self.path)
        except OSError:
            draft.unlink(missing_ok=True)


def digest(graph: Graph, forms: Mapping[int, Mapping[str, Weights]], samples: Sequence[Feeds], judge: Judge) -> str:
    """Of all that sensitivities depend on."""
    found = hashlib.sha256(graph_to_bytes(graph))
    for part in _parts(forms, samples, judge):
        found.update(part)
    return found.hexdigest()[:32]


def _parts(forms: Mapping[int, Mapping[str, Weights]], samples: Sequence[Feeds], judge: Judge) -> Iterator[bytes]:
    yield repr(judge).encode()
    for bits, layers in forms.items():
        for name, pair in layers.items():
            yield f"{bits} {name}".encode()
            yield from (np.ascontiguousarray(a).tobytes() for a in pair)
    for sample in samples:
        for name, a in sorted(sample.items()):
            yield f"{name} {a.dtype} {a.shape}".encode()
            yield np.ascontiguousarray(a).tobytes()
