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
    groups, k = covariance.shape[:2]
    rows = (weights / scale.reshape(-1, 1, 1, 1)).reshape(groups, -1, k)
    order = np.argsort(-np.diagonal(covariance, axis1=1, axis2=2), axis=1, kind="stable")
    w = np.take_along_axis(rows, order[:, None, :], 2)
    factor = _inverse_factor(np.take_along_axis(np.take_along_axis(covariance, order[:, :, None], 1), order[:, None, :], 2))
    for start in range(0, k, BLOCK):
        end = min(start + BLOCK, k)
        errors = _round_block(w[..., start:end], factor[:, start:end, start:end], greatest)
        w[..., end:] -= errors @ factor[:, start:end, end:]
    q = np.empty_like(w)
    np.put_along_axis(q, np.broadcast_to(order[:, None, :], w.shape), w, 2)
    return q.reshape(weights.shape)


def _round_block(w: Floats, factor: Floats, greatest: int) -> Floats:
    """Round the columns of `w` [groups, n, block] in place; the errors, likewise."""
    errors = np.empty_like(w)
    for i in range(w.shape[2]):
        q = np.clip(np.rint(w[..., i]), -greatest, greatest)
        errors[..., i] = (w[..., i] - q) / factor[:, i, i, None]
        w[..., i + 1 :] -= errors[..., i, None] * factor[:, None, i, i + 1 :]
        w[..., i] = q
    return errors


def _inverse_factor(h: Floats) -> Floats:
    """Upper Cholesky factor of the inverse of each damped matrix of `h` [groups, K, K]."""
    variance = np.diagonal(h, axis1=1, axis2=2).mean(1)
    damping = np.where(variance > 0, DAMPING * variance, 1.0)
    inverse = np.linalg.inv(h + damping[:, None, None] * np.eye(h.shape[1]))
    return np.asarray(np.linalg.cholesky((inverse + inverse.transpose(0, 2, 1)) / 2).transpose(0, 2, 1))
