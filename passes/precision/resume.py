"""Sensitivities are sums over samples. They are kept in a file as they grow, so that a run that was interrupted goes on where it was.

The file is named by the SHA-256 of the network, of the rounded weights, of the samples and of what judges answers.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from qcompiler.ir.graph import Graph
from qcompiler.ir.serialize import graph_to_bytes

from .labels import Right
from .loss import Classes, Judge
from .simulate import Array, Feeds, Weights

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Sums:
    """Over so many `samples`: of losses and of squared noise, one for each change, of products of directions, of squared answers, and, where right
    answers are known, of the excess of each change and its square (`labels`)."""

    samples: int
    loss: Floats
    noise: Floats
    pairs: Floats
    power: float
    excess: Floats
    excess_squared: Floats

    @classmethod
    def none(cls, changes: int) -> Sums:
        """Of no sample."""
        n = np.zeros(changes)
        return cls(0, n, n, np.zeros((changes, changes)), 0.0, n, n)

    def plus(self, y: Array, others: Sequence[Array], judge: Judge, right: Right | None = None) -> Sums:
        """With one more sample, whose answer is `y` and, of each change alone, one of `others`; `right` are its labels."""
        h = np.stack([judge.directions(y, o) for o in others])
        loss = self.loss + [judge.loss(y, o) for o in others]
        noise = self.noise + [float(((o.astype(np.float64) - y) ** 2).sum()) for o in others]
        power = self.power + float((y.astype(np.float64) ** 2).sum())
        excess = np.zeros(len(others))
        if right is not None and isinstance(judge, Classes):
            excess = np.array([judge.excess(y, o, right) for o in others])
        return Sums(self.samples + 1, loss, noise, self.pairs + h @ h.T, power, self.excess + excess, self.excess_squared + excess**2)


class Kept:
    """The sums in a file of `folder`."""

    def __init__(self, folder: Path, digest: str) -> None:
        self.path = folder / f"{digest}.npz"

    def read(self) -> Sums | None:
        """None where there are none, or the file is broken."""
        try:
            with np.load(self.path) as f:
                return Sums(int(f["samples"]), f["loss"], f["noise"], f["pairs"], float(f["power"]), f["excess"], f["excess_squared"])
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return None

    def write(self, sums: Sums) -> None:
        """In one piece or not at all; where nothing can be written, nothing is kept."""
        draft = self.path.with_name(f".{self.path.stem}-{os.getpid()}.npz")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(draft, **{field.name: getattr(sums, field.name) for field in fields(sums)})
            draft.replace(self.path)
        except OSError:
            draft.unlink(missing_ok=True)


def digest(graph: Graph, forms: Mapping[int, Mapping[str, Weights]], samples: Sequence[Feeds], judge: Judge, rights: Sequence[Right] = ()) -> str:
    """Of all that sensitivities depend on."""
    found = hashlib.sha256(graph_to_bytes(graph))
    for part in _parts(forms, samples, judge):
        found.update(part)
    for right in rights:
        found.update(right.tobytes())
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
