"""Second-order rounding: weights are rounded one after the other, and those still to come make up for the error.

For one row w of a linear layer and H the covariance of its inputs, minimise (w - q S) H (w - q S)^T over integers q. Rounding
w_i and moving the rest by the best real amount is, with U the upper Cholesky factor of H^-1 (Frantar et al. 2023, "GPTQ",
section 3, after Hassibi & Stork 1993, "Optimal Brain Surgeon"):

    e = (w_i - S round(w_i / S)) / U_ii            w_j -= e U_ij   for j > i

Inputs of large variance go first. The mean of the inputs does not matter here, since the bias takes it.

Weights are worth a second look, those of few bits several: coordinate descent from there, each weight in turn to the best integer while all
others stay, until none moves. With d = w - q S, that is

    q_i <- nearest(q_i + (d H)_i / (S H_ii))
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .weight_grid import Grid

Floats = NDArray[np.float64]

DAMPING, DAMPING_FEW_BITS = 0.01, 0.1
"""Part of the mean variance that is added to the diagonal of H; more for few bits, which follow H far, known of some samples only."""
BLOCK = 64
SWEEPS = 4


def round_weights(weights: Floats, grid: Grid, covariance: Floats, sweeps: int = 0, damping: float = DAMPING) -> Floats:
    """Integers of `weights` [O,kh,kw,C/groups] out of `grid` for inputs of `covariance` [groups,K,K]; then so many sweeps of descent, at most."""
    groups, k = covariance.shape[:2]
    order = np.argsort(-np.diagonal(covariance, axis1=1, axis2=2), axis=1, kind="stable")
    rows = _ordered((weights / grid.scale.reshape(-1, 1, 1, 1)).reshape(groups, -1, k), order)
    low, high = (np.broadcast_to(a.reshape(groups, -1), rows.shape[:2]) for a in (grid.low, grid.high))
    levels = _Levels(_ordered(grid.multipliers.reshape(groups, -1, k), order), low, high)
    h = _damped(np.take_along_axis(np.take_along_axis(covariance, order[:, :, None], 1), order[:, None, :], 2), damping)
    made = _descend(rows, _compensated(rows.copy(), h, levels), h, levels, sweeps)
    q = np.empty_like(made)
    np.put_along_axis(q, np.broadcast_to(order[:, None, :], made.shape), made, 2)
    return q.reshape(weights.shape)


class _Levels:
    """Rounds column i of rows [groups, n, K] to `multipliers` [groups, n, K] times integers within `low` and `high` [groups, n]."""

    def __init__(self, multipliers: NDArray[np.int64], low: NDArray[np.int64], high: NDArray[np.int64]) -> None:
        self.multipliers, self.low, self.high = multipliers.astype(np.float64), low, high

    def __call__(self, w: Floats, i: int) -> Floats:
        m = self.multipliers[..., i]
        return np.asarray(m * np.clip(np.rint(w / m), self.low, self.high))


def _ordered(rows: NDArray[np.generic], order: NDArray[np.int64]) -> NDArray:  # type: ignore[type-arg]
    return np.take_along_axis(rows, order[:, None, :], 2)


def _compensated(w: Floats, h: Floats, levels: _Levels) -> Floats:
    """GPTQ of `w` [groups, n, K], in place."""
    k, factor = w.shape[2], _inverse_factor(h)
    for start in range(0, k, BLOCK):
        end = min(start + BLOCK, k)
        errors = np.empty_like(w[..., start:end])
        for i in range(start, end):
            q = levels(w[..., i], i)
            errors[..., i - start] = (w[..., i] - q) / factor[:, i, i, None]
            w[..., i + 1 : end] -= errors[..., i - start, None] * factor[:, None, i, i + 1 : end]
            w[..., i] = q
        w[..., end:] -= errors @ factor[:, start:end, end:]
    return w


def _descend(w: Floats, q: Floats, h: Floats, levels: _Levels, sweeps: int) -> Floats:
    """Coordinate descent from `q`, block by block: within a block the gradient is kept up to date, beyond it at the block's end."""
    gradient = (w - q) @ h
    for _ in range(sweeps):
        before = q.copy()
        for start in range(0, q.shape[2], BLOCK):
            end = min(start + BLOCK, q.shape[2])
            old = q[..., start:end].copy()
            for i in range(start, end):
                found = levels(q[..., i] + gradient[..., i] / h[:, i, i, None], i)
                gradient[..., start:end] -= (found - q[..., i])[..., None] * h[:, None, i, start:end]
                q[..., i] = found
            moved = q[..., start:end] - old
            gradient[..., :start] -= moved @ h[:, start:end, :start]
            gradient[..., end:] -= moved @ h[:, start:end, end:]
        if np.array_equal(before, q):
            break
    return q


def _damped(h: Floats, part: float) -> Floats:
    """Matrices [groups, K, K] with more on their diagonals."""
    variance = np.diagonal(h, axis1=1, axis2=2).mean(1)
    damping = np.where(variance > 0, part * variance, 1.0)
    return np.asarray(h + damping[:, None, None] * np.eye(h.shape[1]))


def _inverse_factor(h: Floats) -> Floats:
    """Upper Cholesky factor of the inverse of each matrix of `h` [groups, K, K]."""
    inverse = np.linalg.inv(h)
    return np.asarray(np.linalg.cholesky((inverse + inverse.transpose(0, 2, 1)) / 2).transpose(0, 2, 1))
