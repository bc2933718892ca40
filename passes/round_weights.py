"""Second-order rounding: weights are rounded one after the other, and those still to come make up for the error.

For one row w of a linear layer and H the covariance of its inputs, minimise (w - q S) H (w - q S)^T over integers q. Rounding
w_i and moving the rest by the best real amount is, with U the upper Cholesky factor of H^-1 (Frantar et al. 2023, "GPTQ",
section 3, after Hassibi & Stork 1993, "Optimal Brain Surgeon"):

    e = (w_i - S round(w_i / S)) / U_ii            w_j -= e U_ij   for j > i

Inputs of large variance go first. The mean of the inputs does not matter here, since the bias takes it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

DAMPING = 0.01
"""Part of the mean variance that is added to the diagonal of H."""
BLOCK = 64


def round_weights(weights: Floats, scale: Floats, covariance: Floats, greatest: int) -> Floats:
    """Integers of `weights` [O,kh,kw,C/groups] with `scale` [O] and `covariance` [groups,K,K], within +-`greatest`."""
    groups = len(covariance)
    rows = (weights / scale.reshape(-1, 1, 1, 1)).reshape(groups, -1, covariance.shape[1])
    rounded = np.stack([_round_group(r, h, greatest) for r, h in zip(rows, covariance)])
    return rounded.reshape(weights.shape)


def _round_group(rows: Floats, h: Floats, greatest: int) -> Floats:
    """`rows` [n, K] in units of their scales."""
    order = np.argsort(-np.diag(h), kind="stable")
    w, factor = rows[:, order].copy(), _inverse_factor(h[np.ix_(order, order)])
    for start in range(0, w.shape[1], BLOCK):
        end = min(start + BLOCK, w.shape[1])
        errors = _round_block(w[:, start:end], factor[start:end, start:end], greatest)
        w[:, end:] -= errors @ factor[start:end, end:]
    q = np.empty_like(w)
    q[:, order] = w
    return q


def _round_block(w: Floats, factor: Floats, greatest: int) -> Floats:
    """Round the columns of `w` in place; the errors [n, block]."""
    errors = np.empty_like(w)
    for i in range(w.shape[1]):
        q = np.clip(np.rint(w[:, i]), -greatest, greatest)
        errors[:, i] = (w[:, i] - q) / factor[i, i]
        w[:, i + 1 :] -= errors[:, i : i + 1] * factor[i, i + 1 :]
        w[:, i] = q
    return errors


def _inverse_factor(h: Floats) -> Floats:
    """Upper Cholesky factor of the inverse of the damped `h`."""
    damping = DAMPING * float(np.mean(np.diag(h))) or 1.0
    inverse = np.linalg.inv(h + damping * np.eye(len(h)))
    return np.linalg.cholesky((inverse + inverse.T) / 2).T
