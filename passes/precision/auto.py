"""`precision="auto"`: sensitivities on some calibration samples, the choice, and its check on samples held out from calibration.

The promise is checked on the Q/DQ network, with 8-bit activations and the weights that the choice would get.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import UsageError
from qcompiler.ir.graph import Declined, Graph
from qcompiler.passes import pipeline
from qcompiler.passes.calibrate import calibrate, samples
from qcompiler.passes.storage_points import storage_points

from .costs import Latencies, weight_bytes
from .loss import Drop, Judge, drop_of, judge_of
from .plan import Plan, Precision
from .search import BYTES, MILLISECONDS, Choice, Goal, Point, Search, problem_of
from .sensitivity import Sensitivities, measure_sensitivities, rank_correlations
from .simulate import Feeds, Simulation, Weights, weighted_layers, weights_of

WIDTHS = (8, 4)
"""Those that differ in cost, the reference first."""
FASTER = (8, 7, 6, 4)
"""Where time counts: between 8 and 4 bits, sums of 16 bits pair more often."""
LEAST, MOST, PRODUCTS = 16, 256, 4e11
"""Samples on which sensitivities are measured: as many as take so many multiply-accumulates, within bounds."""
HELD_OUT, EVERY = 256, 3
"""Of so many samples the last is held out from calibration, up to a number."""
Progress = Callable[[str, int, int], None]
"""Hears what is being done, how much of it is, and of how much (0: unknown)."""


@dataclass(frozen=True)
class Chosen:
    """The plan, the point that was chosen, the frontier, and how far estimates are to be trusted."""

    plan: Plan
    widths: tuple[int, ...]
    layers: tuple[str, ...]
    sensitivities: Sensitivities
    point: Point
    reference: Point
    """Eight bits everywhere."""
    frontier: tuple[Point, ...]


class HeldOut:
    """Batches without the samples that are held out, which are kept in `samples`."""

    def __init__(self, graph: Graph, batches: Iterable[Feeds]) -> None:
        self._graph, self._batches = graph, batches
        self.samples: list[dict[str, NDArray[np.generic]]] = []
        self.looked_at: list[dict[str, NDArray[np.generic]]] = []
        """The first of the others."""

    def __iter__(self) -> Iterator[dict[str, NDArray[np.generic]]]:
        for n, sample in enumerate(s for batch in self._batches for s in samples(self._graph, batch)):
            if n % EVERY == EVERY - 1 and len(self.samples) < HELD_OUT:
                self.samples.append(sample)
            else:
                self.looked_at += [sample] if len(self.looked_at) < MOST else []
                yield sample


def quantize_auto(
    graph: Graph,
    batches: Iterable[Feeds],
    options: pipeline.Options,
    goal: Goal,
    latencies: Latencies | None = None,
    progress: Progress | None = None,
) -> tuple[pipeline.Quantized, Chosen]:
    """The network quantized by the best plan for `goal`. UsageError where there is none, or too few samples to tell."""
    tell = progress or (lambda what, done, total: None)
    declined = Declined()
    simple = pipeline.legal(graph, declined)
    held = HeldOut(simple, batches)
    preview, rest = pipeline.split_off(held, pipeline.PREVIEW_SAMPLES)
    even = pipeline.evened(simple, calibrate(simple, preview, storage_points(simple)), options, declined)
    options = replace(options, weight_bits=8, activation_bits=8, plan=Plan())
    seen = pipeline.observed(even, preview, rest, options, lambda n: tell("calibrating", n, 0))
    if len(held.samples) < 2:
        raise UsageError(f"automatic precision needs calibration samples to hold out: expected at least {2 * EVERY}, found too few")
    auto = Auto(even, seen, options, held.samples, goal, latencies, tell)
    chosen = auto.run(held.looked_at)
    return pipeline.quantized(even, seen, replace(options, plan=chosen.plan), declined), chosen


class Auto:
    """Everything behind calibration: `graph` is the even float network and `seen` what calibration says of it."""

    def __init__(
        self,
        graph: Graph,
        seen: pipeline.Observed,
        options: pipeline.Options,
        held: Sequence[Feeds],
        goal: Goal,
        latencies: Latencies | None,
        tell: Progress,
    ) -> None:
        self.graph, self.seen, self.options, self.held = graph, seen, options, held
        self.goal, self.latencies, self.tell = goal, latencies, tell
        self.layers = tuple(v.name for v in weighted_layers(graph))
        self.widths = WIDTHS if latencies is None else tuple(w for w in FASTER if w in latencies.widths)
        self.network = Simulation(graph)
        self.answers = list(self.network.answers(held))
        self.judge: Judge = judge_of(graph, self.answers)
        self.forms, self.integer = self._rounded()

    def run(self, looked_at: Sequence[Feeds]) -> Chosen:
        """Sensitivities on the first of these samples, and the choice."""
        convs = weighted_layers(self.graph)
        products = sum(v.type.size * int(np.prod(v.inputs[1].shape[1:])) for v in convs) * len(convs) * (len(self.widths) - 1)
        looked_at = looked_at[: max(LEAST, min(MOST, int(PRODUCTS / max(products, 1))))]
        total = len(looked_at) * len(self.layers) * (len(self.widths) - 1)
        narrow = {b: self.forms[b] for b in self.widths[1:]}
        found = measure_sensitivities(self.network, narrow, looked_at, self.judge, lambda n: self.tell("sensitivities", n, total))
        search = Search(problem_of(found, self.layers, self.widths, self._costs()), self.goal, self._drop)
        point = search.run()
        reference = search.point((0,) * len(self.layers))
        return Chosen(self.plan(point.choice), self.widths, self.layers, found, point, reference, tuple(search.frontier()))

    def plan(self, choice: Choice) -> Plan:
        """The plan of a choice."""
        return Plan({name: Precision(self.widths[w]) for name, w in zip(self.layers, choice)})

    def correlations(self, found: Sensitivities, truth: Sequence[Feeds]) -> dict[str, float]:
        """Kendall's tau of every estimate with the loss of the same changes on other samples."""
        narrow = {b: self.forms[b] for b in self.widths[1:]}
        return rank_correlations(found, measure_sensitivities(self.network, narrow, truth, self.judge).loss)

    def _rounded(self) -> tuple[dict[int, dict[str, Weights]], Simulation]:
        """Weights in every width, and the network with 8-bit activations."""
        made = dict[int, Graph]()
        for n, bits in enumerate(self.widths):
            self.tell("rounding weights", n, len(self.widths))
            plan = Plan(default=Precision(bits))
            made[bits] = pipeline.quantized(self.graph, self.seen, replace(self.options, plan=plan), Declined()).qdq_graph
        return {bits: weights_of(g) for bits, g in made.items()}, Simulation(made[self.widths[0]])

    def _costs(self) -> Mapping[str, NDArray[np.float64]]:
        convs = weighted_layers(self.graph)
        costs = {BYTES: np.array([[weight_bytes(v, b) for b in self.widths] for v in convs], np.float64)}
        return costs if self.latencies is None else costs | {MILLISECONDS: self.latencies.of(self.layers, self.widths)}

    def _drop(self, choice: Choice) -> Drop:
        self.tell("checking the promise", 0, 0)
        changed = {name: self.forms[self.widths[w]][name] for name, w in zip(self.layers, choice)}
        return drop_of(self.judge, self.answers, self.integer.answers(self.held, changed))
