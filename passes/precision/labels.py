"""Right answers of calibration samples: what fewer bits cost where labels do not follow the float network's probabilities.

With p the float network's probabilities, q those of a change and l the label of a sample, the cross entropy grows by

    log p_l - log q_l  =  KL(p || q)  +  excess          E excess = 0 if labels follow p

Two things make labels matter. Networks are surer than they are right: their probabilities are made honest by a temperature, the one of least
cross entropy on the labels (Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2). And they err in a direction: on data that
differ from those they were trained on, cross entropy has a slope, and changes cost or gain to first order, where the divergence is of second.

The excess of a change is a mean over few samples, and noisy. All together are shrunk by the part of them that is more than noise (Efron and Morris
1973, "Stein's Estimation Rule and Its Competitors"):

    w = max(0, 1 - sum_i error_i^2 / sum_i excess_i^2)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from qcompiler.errors import UsageError

from .loss import Array, Classes, Judge

Floats = NDArray[np.float64]
Right = NDArray[np.integer]
"""The classes of the rows of one sample; below 0: unknown."""
TEMPERATURES = 0.2, 5.0


def rights_of(batch: Mapping[str, NDArray[np.generic]], labels: str | None, count: int) -> Sequence[Right | None]:
    """Of the `count` samples of a batch, whose right answers are the array called `labels`; without a name, of none they are known."""
    if labels is None:
        return [None] * count
    if labels not in batch:
        raise UsageError(f"calibration batch: expected right answers {labels!r}, found {', '.join(map(repr, batch))}; give them, or no labels")
    found = np.asarray(batch[labels])
    if found.dtype.kind not in "iu" or not found.size or found.size % count:
        kind = f"{found.dtype} {list(found.shape)}"
        raise UsageError(f"calibration batch: right answers {labels!r}: expected integers, one or more for each of {count} samples, found {kind}")
    return np.split(found.astype(np.int64).ravel(), count)


def calibrated(judge: Judge, answers: Sequence[Array], rights: Sequence[Right]) -> Judge:
    """`judge` at the temperature of least cross entropy of the float network's `answers`. UsageError where these are no classes, or others."""
    if not isinstance(judge, Classes):
        raise UsageError("labels are classes, but the network's first output is no row of classes; leave the labels out")
    if not any((right >= 0).any() for right in rights):
        raise UsageError("of no calibration sample that is looked at the right answer is known: all labels are below 0; leave the labels out")
    for y, right in zip(answers, rights, strict=True):
        _check(y, right)

    def cross_entropy(log_temperature: float) -> float:
        at = replace(judge, temperature=float(np.exp(log_temperature)))
        return float(np.mean([-at.chances(y, right).mean() for y, right in zip(answers, rights) if (right >= 0).any()]))

    bounds = (float(np.log(TEMPERATURES[0])), float(np.log(TEMPERATURES[1])))
    found = minimize_scalar(cross_entropy, bounds=bounds, method="bounded", options={"xatol": 1e-3})
    return replace(judge, temperature=float(np.exp(found.x)))


def _check(y: Array, right: Right) -> None:
    rows, classes = y.size // y.shape[-1], y.shape[-1]
    if len(right) != rows:
        raise UsageError(f"expected {rows} labels for each calibration sample, one for each row of classes, found {len(right)}")
    if right.max() >= classes:
        raise UsageError(f"expected labels below {classes}, the number of classes, found {right.max()}; labels count from 0")


def shrunk(excess: Floats, errors: Floats) -> Floats:
    """The excess of all changes, as far as it is more than noise; `errors` are their standard errors."""
    size = float((excess**2).sum())
    return excess * max(0.0, 1 - float((errors**2).sum()) / size) if size else excess
