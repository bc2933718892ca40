"""How much worse answers are than those of the float network, without labels.

Classes, where the answer is a row of logits z or probabilities, p = softmax z:

    loss   KL(p || q) = sum_i p_i (log p_i - log q_i)                 nats: the expected increase of the cross entropy, if labels follow p
         = 1/2 Var_p(dz) + O(dz^3)                                    dz the change of the logits; Var_p weighs classes by p
    drop   100 (p_a - p_b)      a = argmax p, b = argmax q            points: the expected loss of accuracy, if labels follow p

The second line is the Gauss-Newton approximation (Schraudolph 2002, "Fast Curvature Matrix-Vector Products"): a square, so it is the
squared length of the *directions* sqrt(p_i / 2) (dz_i - E_p dz), and what two changes do together beyond their sum is twice the
product of their directions.

Values, any other answer y of variance s^2: noise is judged as if the truth were known up to it,

    loss   1/2 |dy|^2 / (n s^2)                                       KL of two normal distributions of that variance
    drop   100 loss                                                   100 (1 - correlation of y and y + dy), to first order
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.ops import Conv, MatMul, Reshape, Softmax, Transpose

Array = NDArray[np.floating]
Floats = NDArray[np.float64]


class Judge(Protocol):
    """Compares an answer with that of the float network."""

    def loss(self, y: Array, other: Array) -> float:
        """In nats."""

    def drop(self, y: Array, other: Array) -> float:
        """In points."""

    def directions(self, y: Array, other: Array) -> Floats:
        """A vector whose squared length is the loss, to second order."""


@dataclass(frozen=True)
class Classes:
    """Logits along the last axis; `probabilities` where the network ends in a softmax."""

    probabilities: bool = False

    def loss(self, y: Array, other: Array) -> float:
        a, b = self._log(y), self._log(other)
        return float((np.exp(a) * (a - b)).sum(-1).mean())

    def drop(self, y: Array, other: Array) -> float:
        p = np.exp(self._log(y))
        theirs = np.take_along_axis(p, other.reshape(p.shape).argmax(-1)[:, None], 1)
        return 100 * float((p.max(-1) - theirs[:, 0]).mean())

    def directions(self, y: Array, other: Array) -> Floats:
        a, b = self._log(y), self._log(other)
        p, dz = np.exp(a), b - a
        centred = dz - (p * dz).sum(-1, keepdims=True)
        return (np.sqrt(p / (2 * len(p))) * centred).ravel()

    def _log(self, y: Array) -> Floats:
        """Logarithms of probabilities [rows, classes]."""
        z = y.reshape(-1, y.shape[-1]).astype(np.float64)
        z = np.log(np.maximum(z, 1e-12)) if self.probabilities else z
        z = z - z.max(-1, keepdims=True)
        return np.asarray(z - np.log(np.exp(z).sum(-1, keepdims=True)))


@dataclass(frozen=True)
class Values:
    """Numbers of variance `variance` around their means."""

    variance: float

    def loss(self, y: Array, other: Array) -> float:
        return float((self.directions(y, other) ** 2).sum())

    def drop(self, y: Array, other: Array) -> float:
        return 100 * self.loss(y, other)

    def directions(self, y: Array, other: Array) -> Floats:
        d = other.astype(np.float64) - y
        return d.ravel() / np.sqrt(2 * d.size * self.variance)


def judge_of(graph: Graph, answers: Sequence[Array]) -> Judge:
    """What the first output is: rows of classes where a softmax or a dense layer gives at most three axes, else values."""
    v = graph.outputs[0]
    probabilities = isinstance(v.op, Softmax) and not v.op.log
    if v.type.rank in (1, 2, 3) and v.shape[-1] > 1 and (isinstance(v.op, Softmax) or _is_dense(v)):
        return Classes(probabilities)
    stack = np.stack([a.astype(np.float64) for a in answers])
    spread = float(((stack - stack.mean(0)) ** 2).mean()) or float((stack**2).mean())
    return Values(spread or 1.0)


def _is_dense(v: Value) -> bool:
    while isinstance(v.op, (Reshape, Transpose)):
        v = v.inputs[0]
    return isinstance(v.op, (Conv, MatMul))


@dataclass(frozen=True)
class Drop:
    """Expected loss of accuracy in points: its mean over samples, and the standard error of that."""

    mean: float
    error: float
    loss: float
    """Nats."""


def drop_of(judge: Judge, answers: Iterable[Array], others: Iterable[Array]) -> Drop:
    """Of `others`, compared with the float network's `answers`."""
    pairs = [(judge.drop(a, b), judge.loss(a, b)) for a, b in zip(answers, others, strict=True)]
    drops, losses = (np.array(c) for c in zip(*pairs))
    error = float(drops.std(ddof=1) / np.sqrt(len(drops))) if len(drops) > 1 else 0.0
    return Drop(float(drops.mean()), error, float(losses.mean()))
