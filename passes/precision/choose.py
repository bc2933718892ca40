"""The best width of every layer under a budget, as an integer program.

    minimise   sum c_lb x_lb                        c one of the costs: bytes, milliseconds, loss
    subject to sum_b x_lb = 1                       each layer has one width
               sum a_lb x_lb <= limit               for each other cost that has one
               loss = sum loss_i x_i + sum g_ij y_ij
               y_ij >= x_i + x_j - 1, y_ij >= 0     where g_ij > 0:  y = x_i x_j, linearised (McCormick 1976)
               y_ij <= x_i, y_ij <= x_j             where g_ij < 0

x is binary; y may be continuous, since it is binary of itself where x is. Solved by HiGHS (Huangfu & Hall 2018).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from qcompiler.errors import UsageError

Floats = NDArray[np.float64]
LOSS = "loss"
SECONDS, GAP = 20.0, 1e-4


@dataclass(frozen=True)
class Problem:
    """`costs[name]` [layers, widths]; `pairs` maps two options, numbered layer * widths + width, to what they cost together beyond their sum.
    Options that are `closed` are not to be taken."""

    costs: Mapping[str, Floats]
    pairs: Mapping[tuple[int, int], float]
    closed: frozenset[int] = frozenset()

    @property
    def shape(self) -> tuple[int, int]:
        """(layers, widths)."""
        layers, widths = next(iter(self.costs.values())).shape
        return layers, widths

    def cost(self, name: str, choice: Sequence[int]) -> float:
        """Of the width numbered choice[l] for each layer l."""
        layers, widths = self.shape
        total = float(self.costs[name][np.arange(layers), list(choice)].sum())
        chosen = {layer * widths + width for layer, width in enumerate(choice)}
        return total + (sum(g for (i, j), g in self.pairs.items() if i in chosen and j in chosen) if name == LOSS else 0.0)


def choose(problem: Problem, minimise: str, limits: Mapping[str, float]) -> tuple[int, ...] | None:
    """The width of each layer; None where no choice keeps the limits."""
    layers, widths = problem.shape
    n, pairs = layers * widths, list(problem.pairs.items())
    size = n + len(pairs)
    rows = [LinearConstraint(_one_each(layers, widths, size), 1, 1), *_products(pairs, n)]
    rows += [LinearConstraint(_row(problem, name)[None], -np.inf, limit) for name, limit in limits.items()]
    integral = np.concatenate([np.ones(n), np.zeros(len(pairs))])
    objective = _row(problem, minimise)
    scale = float(np.abs(objective).max()) or 1.0
    most = np.ones(size)
    most[list(problem.closed)] = 0
    found = milp(
        objective / scale, integrality=integral, bounds=Bounds(0, most), constraints=rows, options={"time_limit": SECONDS, "mip_rel_gap": GAP}
    )
    if found.x is None:
        if found.status == 2:
            return None
        raise UsageError(f"the integer program of precisions was not solved in {SECONDS:.0f} s: {found.message}; ask for fewer widths")
    return tuple(int(i) for i in found.x[:n].reshape(layers, widths).argmax(1))


def _row(problem: Problem, name: str) -> Floats:
    joint = list(problem.pairs.values()) if name == LOSS else [0.0] * len(problem.pairs)
    return np.concatenate([problem.costs[name].ravel(), np.array(joint, np.float64)])


def _one_each(layers: int, widths: int, size: int) -> coo_array:
    at = np.arange(layers * widths)
    return coo_array((np.ones(len(at)), (at // widths, at)), shape=(layers, size)).tocsr()


def _products(pairs: Sequence[tuple[tuple[int, int], float]], n: int) -> list[LinearConstraint]:
    """y_ij = x_i x_j from the side that matters."""
    entries, upper = list[tuple[int, int, float]](), list[float]()
    for k, ((i, j), g) in enumerate(pairs):
        rows = ([(i, 1.0), (j, 1.0), (n + k, -1.0)],) if g > 0 else ([(n + k, 1.0), (i, -1.0)], [(n + k, 1.0), (j, -1.0)])
        for row in rows:
            entries += [(len(upper), column, a) for column, a in row]
            upper.append(1.0 if g > 0 else 0.0)
    if not upper:
        return []
    at, column, a = zip(*entries)
    return [LinearConstraint(coo_array((a, (at, column)), shape=(len(upper), n + len(pairs))).tocsr(), -np.inf, np.array(upper))]
