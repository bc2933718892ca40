"""How much worse answers are than those of the float network, without labels.

Classes, where the answer is a row of logits z or probabilities, p = softmax z:

    loss   KL(p || q) = sum_i p_i (log p_i - log q_i)                 nats: the expected increase of the cross entropy, if labels follow p
         = 1/2 Var_p(dz) + O(dz^3)                                    dz the change of the logits; Var_p weighs classes by p
    drop   100 (p_a - p_b)      a = argmax p, b = argmax q            points: the expected loss of accuracy, if labels follow p

Which of few samples change their answer is luck, so the drop is not that of the changes seen: see `exchanged_drop`. Networks tend to be surer
than they are right (Guo et al. 2017, "On Calibration of Modern Neural Networks"); then the drop is overestimated. Where labels are known, `labels.py`
finds the temperature t of p = softmax z / t.

The second line is the Gauss-Newton approximation (Schraudolph 2002, "Fast Curvature Matrix-Vector Products"): a square, so it is the
squared length of the *directions* sqrt(p_i / 2) (dz_i - E_p dz), and what two changes do together beyond their sum is twice the
product of their directions.

Values, any other answer y of variance s^2: noise is judged as if the truth were known up to it,

    loss   1/2 |dy|^2 / (n s^2)                                       KL of two normal distributions of that variance
    drop   100 loss                                                   100 (1 - correlation of y and y + dy), to first order

Directions, answers of length one (embeddings), which are compared with each other by their cosines c_ij = y_i . y_j:

    loss   1/2 E_j dc_ij^2 / Var c,  dc_ij = dy_i . y_j + y_i . dy_j  nats of the cosines, as for values: |R dy_i|^2 / Var c, R^2 = E y y^T
    drop   100 (1 - Spearman's correlation of c_ij and c'_ij, i < j)  points: the loss of rank correlation, if people rank pairs as the network does
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.ops import Conv, MatMul, Reduce, Reduction, Reshape, Softmax, Transpose
from qcompiler.ir.pointwise import Clip

Array = NDArray[np.floating]
Floats = NDArray[np.float64]
ROWS, NEAR = 512, 0.5
"""Rows of classes that are looked at, and the part of them that are alike enough to exchange their changes."""
PARTS = 8
LEAST_DIRECTIONS, UNIT = 16, 1e-3
"""Elements from which on vectors whose squared length is so near to one are taken for embeddings."""


class Judge(Protocol):
    """Compares an answer with that of the float network."""

    def loss(self, y: Array, other: Array) -> float:
        """In nats."""

    def drop(self, answers: Sequence[Array], others: Sequence[Array]) -> tuple[float, float]:
        """In points: the expected loss of accuracy, and the standard error of that."""

    def directions(self, y: Array, other: Array) -> Floats:
        """A vector whose squared length is the loss, to second order."""


@dataclass(frozen=True)
class Classes:
    """Logits along the last axis; `probabilities` where the network ends in a softmax."""

    probabilities: bool = False
    temperature: float = 1.0

    def loss(self, y: Array, other: Array) -> float:
        a, b = self._log(y), self._log(other)
        return float((np.exp(a) * (a - b)).sum(-1).mean())

    def drop(self, answers: Sequence[Array], others: Sequence[Array]) -> tuple[float, float]:
        y, other = (np.concatenate([self._log(a)[:: self._stride(answers)] for a in s]) for s in (answers, others))
        return exchanged_drop(*_margins(y, other), len(y) // len(answers))

    def directions(self, y: Array, other: Array) -> Floats:
        a, b = self._log(y), self._log(other)
        p, dz = np.exp(a), b - a
        centred = dz - (p * dz).sum(-1, keepdims=True)
        return (np.sqrt(p / (2 * len(p))) * centred).ravel()

    def chances(self, y: Array, right: NDArray[np.integer]) -> Floats:
        """Logarithms of the probabilities of the `right` classes, one for each row; of rows where it is known (0 and more)."""
        known = np.flatnonzero(right >= 0)
        return self._log(y)[known, right[known]]

    def excess(self, y: Array, other: Array, right: NDArray[np.integer]) -> float:
        """By how much more than the loss cross entropy grows if classes are these: 0 on average if they follow the probabilities of `y`."""
        a, b = self._log(y)[right >= 0], self._log(other)[right >= 0]
        own = self.chances(y, right) - self.chances(other, right)
        return float((own - (np.exp(a) * (a - b)).sum(-1)).mean()) if len(a) else 0.0

    def _stride(self, answers: Sequence[Array]) -> int:
        """Of so many rows of each sample one is looked at."""
        return max(1, -(-len(answers) * (answers[0].size // answers[0].shape[-1]) // ROWS))

    def _log(self, y: Array) -> Floats:
        """Logarithms of probabilities [rows, classes]."""
        z = y.reshape(-1, y.shape[-1]).astype(np.float64)
        z = (np.log(np.maximum(z, 1e-12)) if self.probabilities else z) / self.temperature
        z = z - z.max(-1, keepdims=True)
        return np.asarray(z - np.log(np.exp(z).sum(-1, keepdims=True)))


@dataclass(frozen=True)
class Values:
    """Numbers of variance `variance` around their means."""

    variance: float

    def loss(self, y: Array, other: Array) -> float:
        return float((self.directions(y, other) ** 2).sum())

    def drop(self, answers: Sequence[Array], others: Sequence[Array]) -> tuple[float, float]:
        drops = 100 * np.array([self.loss(a, b) for a, b in zip(answers, others, strict=True)])
        return float(drops.mean()), _standard_error(drops)

    def directions(self, y: Array, other: Array) -> Floats:
        d = other.astype(np.float64) - y
        return d.ravel() / np.sqrt(2 * d.size * self.variance)


@dataclass(frozen=True, eq=False)
class Directions(Values):
    """Vectors of length one. Errors of their elements count as far as they show in cosines with others."""

    root: Floats
    """R [n, n]."""
    spread: float
    """Var c."""

    @classmethod
    def of(cls, variance: float, answers: Sequence[Array]) -> Directions:
        """As such `answers` of the float network are compared."""
        y = np.stack([a.ravel() for a in answers]).astype(np.float64)
        values, vectors = np.linalg.eigh(y.T @ y / len(y))
        cosines = (y @ y.T)[np.triu_indices(len(y), 1)]
        return cls(variance, (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T, float(cosines.var()) if len(cosines) > 1 else variance)

    def directions(self, y: Array, other: Array) -> Floats:
        return np.asarray((other.astype(np.float64) - y).ravel() @ self.root / np.sqrt(self.spread))

    def drop(self, answers: Sequence[Array], others: Sequence[Array]) -> tuple[float, float]:
        """The error is that of the jackknife over `PARTS` parts of the samples (Efron and Stein 1981)."""
        y, other = (np.stack([a.ravel() for a in s]).astype(np.float64) for s in (answers, others))
        left = [np.arange(len(y)) % PARTS != part for part in range(PARTS)] if len(y) > 2 * PARTS else []
        parts = np.array([_rank_loss(y[kept], other[kept]) for kept in left])
        error = np.sqrt((PARTS - 1) / PARTS * ((parts - parts.mean()) ** 2).sum()) if left else 0.0
        return _rank_loss(y, other), float(error)


def _rank_loss(y: Floats, other: Floats) -> float:
    """100 (1 - Spearman's correlation) of the cosines of all pairs of rows; 0 where there are no pairs to rank."""
    pairs = np.triu_indices(len(y), 1)
    if len(pairs[0]) < 2:
        return 0.0
    return float(100 * (1 - spearmanr(*((z @ z.T)[pairs] for z in (y, other))).statistic))


def judge_of(graph: Graph, answers: Sequence[Array]) -> Judge:
    """What the first output is: rows of classes where a softmax or a dense layer gives at most three axes, else values."""
    v = graph.outputs[0]
    probabilities = isinstance(v.op, Softmax) and not v.op.log
    if v.type.rank in (1, 2, 3) and v.shape[-1] > 1 and (isinstance(v.op, Softmax) or _is_dense(v)):
        return Classes(probabilities)
    stack = np.stack([a.astype(np.float64) for a in answers])
    spread = float(((stack - stack.mean(0)) ** 2).mean()) or float((stack**2).mean())
    unit = stack.shape[-1] >= LEAST_DIRECTIONS and stack[0].size == stack.shape[-1] and np.allclose((stack**2).sum(-1), 1, atol=UNIT)
    return Directions.of(spread or 1.0, answers) if unit else Values(spread or 1.0)


def _is_average(v: Value) -> bool:
    return isinstance(v.op, Reduce) and v.op.kind is Reduction.mean and v.inputs[0].type.rank - 1 not in v.op.axes


def _is_dense(v: Value) -> bool:
    """Whether a dense layer gives `v`, perhaps averaged over all pixels, as classifiers without one at their end do."""
    while isinstance(v.op, (Reshape, Transpose)) or _is_average(v):
        v = v.inputs[0]
        v = v.inputs[0] if isinstance(v.op, Clip) else v
    return isinstance(v.op, (Conv, MatMul))


@dataclass(frozen=True)
class Drop:
    """Expected loss of accuracy in points: its mean over samples, and the standard error of that."""

    mean: float
    error: float
    loss: float
    """Nats."""

    @property
    def most(self) -> float:
        """What a promise is judged by: the mean and one error, which the true mean exceeds once in six times."""
        return self.mean + self.error


def drop_of(judge: Judge, answers: Iterable[Array], others: Iterable[Array]) -> Drop:
    """Of `others`, compared with the float network's `answers`."""
    ours, theirs = list(answers), list(others)
    losses = [judge.loss(a, b) for a, b in zip(ours, theirs, strict=True)]
    return Drop(*judge.drop(ours, theirs), float(np.mean(losses)))


def exchanged_drop(margin: Floats, change: Floats, lead: Floats, rows: int = 1) -> tuple[float, float]:
    """(mean, standard error) of the drop in points, from [samples * rows] margins m, their changes c, and p(first) - p(second).

    A sample's margin is as likely to change as that of any sample of similar margin did: N_i are the half of them nearest to it in rank.

        d_ij = 100 (p_i(1st) - p_i(2nd)) [m_i + c_j < 0]            w_ij = [j in N_i] / |N_i|
        drop = mean_i sum_j w_ij d_ij                               Nadaraya 1964, Watson 1964
        error^2 = (var_i sum_j w_ij d_ij + var_j sum_i w_ij d_ij) / samples
    """
    rank = np.argsort(np.argsort(margin, kind="stable"), kind="stable")
    near = np.abs(rank[:, None] - rank) <= len(margin) * NEAR / 2
    d = 100 * lead[:, None] * (margin[:, None] + change < 0) * near / near.sum(1, keepdims=True)
    errors = [_standard_error(a.reshape(-1, rows).mean(1)) for a in (d.sum(1), d.sum(0))]
    return float(d.sum(1).mean()), float(np.hypot(errors[0], errors[1]))


def _margins(y: Floats, other: Floats) -> tuple[Floats, Floats, Floats]:
    """Of logarithms of probabilities [n, classes]: how far the first class of `y` leads, by how much that changes, and its lead in probability."""
    first, second = np.argsort(-y, 1, kind="stable")[:, :2].T
    at = np.arange(len(y))
    rivals = other.copy()
    rivals[at, first] = -np.inf
    margin = y[at, first] - y[at, second]
    return margin, other[at, first] - rivals.max(1) - margin, np.exp(y[at, first]) - np.exp(y[at, second])


def _standard_error(found: Floats) -> float:
    return float(found.std(ddof=1) / np.sqrt(len(found))) if len(found) > 1 else 0.0
