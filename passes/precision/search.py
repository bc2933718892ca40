"""From sensitivities and costs to a plan that keeps its promise on data that neither calibration nor sensitivities have seen.

    minimise bytes (or milliseconds)  subject to  loss <= t              `choose`

t is bisected, in its logarithm, until the drop of the choice measured on calibration samples, and its standard error, are together within what was
promised; the choice of greatest t that keeps it wins. Where bytes or milliseconds are limited and the drop is not, loss is minimised instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qcompiler.errors import UsageError

from .choose import LOSS, Problem, choose
from .loss import Drop
from .sensitivity import Sensitivities

ROUNDS = 6
PAIRS_PER_LAYER = 4
FRONTIER = 14
BYTES, MILLISECONDS = "bytes", "milliseconds"
Choice = tuple[int, ...]


@dataclass(frozen=True)
class Goal:
    """What the user asked for; None: no limit."""

    max_drop: float | None = None
    """Points of accuracy."""
    max_bytes: int | None = None
    max_latency: float | None = None
    """Milliseconds."""

    @property
    def limits(self) -> dict[str, float]:
        """Of costs."""
        given = {BYTES: self.max_bytes, MILLISECONDS: self.max_latency}
        return {name: float(limit) for name, limit in given.items() if limit is not None}


@dataclass(frozen=True)
class Point:
    """A choice, its costs, and the drop that was measured of it (None: not measured)."""

    choice: Choice
    costs: Mapping[str, float]
    drop: Drop | None = None


def problem_of(found: Sensitivities, layers: Sequence[str], widths: Sequence[int], costs: Mapping[str, np.ndarray]) -> Problem:
    """The integer program over `widths`, of which the first is the reference without a loss; the others are open where their loss was measured.

    Errors that cancel on the samples looked at are not counted on: the program would pick out those that do so by chance.
    """
    option = {c: i for i, c in enumerate(found.changes)}
    at = [(n * len(widths) + k, option[name, b]) for n, name in enumerate(layers) for k, b in enumerate(widths) if (name, b) in option]
    loss = np.zeros(len(layers) * len(widths))
    for x, i in at:
        loss[x] = found.loss[i]
    count = len(widths)
    joint = {(x, y): 2 * float(found.pairs[i, j]) for x, i in at for y, j in at if x // count < y // count}
    closed = frozenset(x for x in range(len(loss)) if x % count) - {x for x, _ in at}
    return Problem({**costs, LOSS: loss.reshape(len(layers), count)}, _greatest(joint, count, PAIRS_PER_LAYER * len(layers)), closed)


def _greatest(joint: Mapping[tuple[int, int], float], widths: int, count: int) -> dict[tuple[int, int], float]:
    """Pairs of adjacent layers, and `count` more that matter most."""
    adjacent = {p for p in joint if p[1] // widths - p[0] // widths == 1}
    others = sorted(joint.keys() - adjacent, key=lambda p: -abs(joint[p]))[:count]
    return {p: joint[p] for p in sorted({*adjacent, *others}) if joint[p] > 0}


class Search:
    """Solves the integer program under changing limits; `measure` finds the drop of a choice, which is remembered."""

    def __init__(self, problem: Problem, goal: Goal, measure: Callable[[Choice], Drop]) -> None:
        self.problem, self.goal, self._measure = problem, goal, measure
        self._drops = dict[Choice, Drop]()

    def run(self) -> Point:
        """The best choice. UsageError where none keeps the promises, saying what is feasible."""
        best = self._solved(LOSS, self.goal.limits) if self.goal.limits else (0,) * self.problem.shape[0]
        if best is None:
            raise UsageError(self._too_small())
        point = self.point(best)
        if self.goal.max_drop is None:
            return point
        if not self._kept(point):
            raise UsageError(self._too_much(point))
        return self._bisected(point)

    def frontier(self) -> list[Point]:
        """Choices of least expected loss at budgets of bytes from the least to the most, not measured."""
        least, most = self._extremes(BYTES)
        limits = {k: v for k, v in self.goal.limits.items() if k != BYTES}
        choices = [self._solved(LOSS, limits | {BYTES: float(b)}) for b in np.linspace(least, most, FRONTIER)]
        return [Point(c, self._costs(c)) for c in dict.fromkeys(choices) if c is not None]

    def point(self, choice: Choice) -> Point:
        """A choice with its costs and its drop."""
        if choice not in self._drops:
            self._drops[choice] = self._measure(choice)
        return Point(choice, self._costs(choice), self._drops[choice])

    def _bisected(self, start: Point) -> Point:
        """The cheapest choice found whose drop is within the goal; `start` keeps it."""
        objective = MILLISECONDS if MILLISECONDS in self.problem.costs and BYTES not in self.goal.limits and self.goal.max_latency else BYTES
        cheapest = self.point(self._solved(objective, self.goal.limits) or start.choice)
        if self._kept(cheapest):
            return cheapest
        best, low, high = start, start.costs[LOSS], cheapest.costs[LOSS]
        low = max(low, 1e-4 * high)
        for _ in range(ROUNDS):
            middle = float(np.sqrt(low * high))
            choice = self._solved(objective, self.goal.limits | {LOSS: middle})
            if choice is not None and not self._kept(self.point(choice)):
                high = middle
                continue
            low = middle
            if choice is not None:
                best = min(best, self.point(choice), key=lambda p: p.costs[objective])
        return best

    def _kept(self, point: Point) -> bool:
        return self.goal.max_drop is None or (point.drop is not None and point.drop.most <= self.goal.max_drop)

    def _solved(self, minimise: str, limits: Mapping[str, float]) -> Choice | None:
        return choose(self.problem, minimise, limits)

    def _costs(self, choice: Choice) -> dict[str, float]:
        return {name: self.problem.cost(name, choice) for name in self.problem.costs}

    def _extremes(self, name: str) -> tuple[float, float]:
        table = self.problem.costs[name]
        return float(table.min(1).sum()), float(table.max(1).sum())

    def _too_small(self) -> str:
        least = ", ".join(f"at least {self._extremes(name)[0]:.4g} {name} alone" for name in self.goal.limits)
        asked = " and ".join(f"{limit:.4g} {name}" for name, limit in self.goal.limits.items())
        return f"no choice of precisions keeps to {asked} for the weighted layers; feasible is {least}"

    def _too_much(self, point: Point) -> str:
        assert point.drop is not None
        within = " within the budget" if self.goal.limits else ""
        return (
            f"no choice of precisions keeps the drop within {self.goal.max_drop:g} points: the most accurate one{within} is expected to lose "
            f"{point.drop.mean:.2f} +- {point.drop.error:.2f} on calibration samples; allow {point.drop.most:.2f} or more, or give more samples"
        )
