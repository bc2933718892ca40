"""`precision="auto"`: sensitivities on some calibration samples, the choice, and its check on these and on samples held out from calibration.

The promise is checked on the Q/DQ network, with 8-bit activations and the weights that the choice would get. Half of the samples of the check were
seen neither by ranges, rounding nor sensitivities; that the others were has not been found to matter for 8 and 4 bits, and their number does. Where
there are fewer bits to choose, the choice loses up to twice as much on samples that had no part in it, and only they are checked (docs/precision.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import UsageError
from qcompiler.ir.graph import Declined, Graph
from qcompiler.passes import pipeline
from qcompiler.passes.calibrate import calibrate, samples
from qcompiler.passes.distill import woven
from qcompiler.passes.storage_points import storage_points
from qcompiler.passes.weight_grid import NARROW

from .costs import Latencies, weight_bytes
from .labels import Right, calibrated, rights_of
from .loss import Drop, Judge, drop_of, judge_of
from .plan import Plan, Precision
from .search import BYTES, MILLISECONDS, Choice, Goal, Point, Search, problem_of
from .sensitivity import Forms, Sensitivities, changes_of, measure_sensitivities
from .simulate import Feeds, Simulation, weighted_layers, weights_of

WIDTHS = (8, 4)
"""Bits of weights, the reference first."""
FASTER = (7, 6)
"""Where time counts too: between 8 and 4 bits, sums of 16 bits pair more often."""
SMALLER = (3, 2)
"""Where bytes are limited too. They are no faster than 4, and what they save of a network that is to lose a point is little."""
LEAST, MOST, PRODUCTS = 16, 256, 2e12
"""Samples on which sensitivities are measured: as many as take so many multiply-accumulates, within bounds."""
TUNING = 4e11
"""Multiply-accumulates of samples that the choice is tuned on (`distill`)."""
HELD_OUT, EVERY = 256, 2
"""Of so many samples the last is held out from calibration, up to a number."""
Meter = Callable[[Mapping[int, pipeline.Quantized]], Latencies]
"""Finds the latencies of a network that is given with its weights in every width."""
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
    latencies: Latencies | None
    search: Search = field(repr=False, compare=False)

    @cached_property
    def frontier(self) -> tuple[Point, ...]:
        """Choices of least expected loss from the fewest bytes to the most, not measured; solving for them takes a moment."""
        return tuple(self.search.frontier())


class HeldOut:
    """Batches without the samples that are held out, which are kept in `samples`; `labels` is the array of right answers."""

    def __init__(self, graph: Graph, batches: Iterable[Feeds], labels: str | None = None) -> None:
        self._graph, self._batches, self._labels = graph, batches, labels
        self.samples: list[dict[str, NDArray[np.generic]]] = []
        self.looked_at: list[dict[str, NDArray[np.generic]]] = []
        """The first of the others."""
        self.rights: list[Right | None] = []
        """Their right answers."""

    def __iter__(self) -> Iterator[dict[str, NDArray[np.generic]]]:
        for n, (sample, right) in enumerate(self._answered()):
            if n % EVERY == EVERY - 1 and len(self.samples) < HELD_OUT:
                self.samples.append(sample)
                continue
            if len(self.looked_at) < MOST:
                self.looked_at.append(sample)
                self.rights.append(right)
            yield sample

    def _answered(self) -> Iterator[tuple[dict[str, NDArray[np.generic]], Right | None]]:
        for batch in self._batches:
            found = list(samples(self._graph, {name: a for name, a in batch.items() if name != self._labels}))
            yield from zip(found, rights_of(batch, self._labels, len(found)), strict=True)


def quantize_auto(
    graph: Graph,
    batches: Iterable[Feeds],
    options: pipeline.Options,
    goal: Goal,
    latencies: Latencies | Meter | None = None,
    progress: Progress | None = None,
    saved: Path | None = None,
    labels: str | None = None,
) -> tuple[pipeline.Quantized, Chosen]:
    """The network quantized by the best plan for `goal`. UsageError where there is none, or too few samples to tell.

    `labels` is the array of each batch that holds the right classes of its samples, where it has one.

    A limit of latency needs `latencies`, a table or what makes one. Sensitivities are kept in the folder `saved`, where a run that was interrupted
    is taken up.
    """
    if goal.max_latency is not None and latencies is None:
        raise UsageError("a greatest latency needs a target whose latencies are measured, or a latency table")
    tell = progress or (lambda what, done, total: None)
    auto, looked_at, declined = prepare(graph, batches, options, goal, latencies, tell, saved, labels)
    chosen = auto.run(looked_at)
    plan = replace(auto.options, plan=chosen.plan)
    return pipeline.distilled(auto.graph, auto.seen, plan, declined, woven(looked_at, auto.held_out), progress, TUNING), chosen


def prepare(
    graph: Graph,
    batches: Iterable[Feeds],
    options: pipeline.Options,
    goal: Goal,
    latencies: Latencies | Meter | None,
    tell: Progress,
    saved: Path | None,
    labels: str | None = None,
) -> tuple[Auto, Sequence[Feeds], Declined]:
    """Everything up to calibration and rounding; what to choose by, samples to measure sensitivities on, and what was declined so far."""
    declined = Declined()
    simple = pipeline.legal(graph, declined)
    held = HeldOut(simple, batches, labels)
    options = replace(options, weight_bits=8, activation_bits=8, plan=Plan(), few_bits=True)
    preview, rest = pipeline.split_off(held, pipeline.LOOKED_AT)
    shown_on = preview[: pipeline.PREVIEW_SAMPLES]
    simple = pipeline.counted(simple, pipeline.levels_of(simple, shown_on, options), declined)
    even = pipeline.evened(simple, calibrate(simple, shown_on, storage_points(simple)), options, declined)
    seen = pipeline.observed(even, preview, rest, options, lambda n: tell("calibrating", n, 0))
    if len(held.samples) < 2:
        raise UsageError(f"automatic precision needs calibration samples to hold out: expected at least {2 * EVERY}, found too few")
    rights = [right for right in held.rights if right is not None]
    return Auto(even, seen, options, held.looked_at, held.samples, goal, latencies, tell, saved, rights), held.looked_at, declined


class Auto:
    """Everything behind calibration: `graph` is the even float network and `seen` what calibration says of it."""

    def __init__(
        self,
        graph: Graph,
        seen: pipeline.Observed,
        options: pipeline.Options,
        looked_at: Sequence[Feeds],
        held_out: Sequence[Feeds],
        goal: Goal,
        latencies: Latencies | Meter | None,
        tell: Progress,
        saved: Path | None = None,
        rights: Sequence[Right] = (),
    ) -> None:
        self.graph, self.seen, self.options, self.held_out = graph, seen, options, held_out
        self.goal, self.tell, self.saved = goal, tell, saved
        self.layers = tuple(v.name for v in weighted_layers(graph))
        self.widths = self._able(latencies)
        self.checked = held_out if min(self.widths) < NARROW else woven(looked_at, held_out)
        self.network = Simulation(graph)
        self.answers = list(self.network.answers(self.checked))
        self.rights, judge = rights, judge_of(graph, self.answers)
        self.judge: Judge = calibrated(judge, list(self.network.answers(looked_at[: len(rights)])), rights) if rights else judge
        made = self._rounded()
        self.forms, self.integer = {bits: weights_of(q.qdq_graph) for bits, q in made.items()}, Simulation(made[8].qdq_graph)
        self.latencies = latencies if isinstance(latencies, Latencies) or latencies is None else latencies(made)

    def _able(self, latencies: Latencies | Meter | None) -> tuple[int, ...]:
        """The widths to choose from. UsageError where a table lacks the reference."""
        others = (*(FASTER if latencies is not None else ()), *(SMALLER if self.goal.max_bytes is not None else ()))
        able = tuple(sorted((*WIDTHS, *others), reverse=True))
        if not isinstance(latencies, Latencies):
            return able
        if found := tuple(w for w in able if w in latencies.widths) if 8 in latencies.widths else ():
            return found
        raise UsageError(f"the latency table of {latencies.target} lacks weights of 8 bits, found {list(latencies.widths)}; measure it again")

    def run(self, looked_at: Sequence[Feeds]) -> Chosen:
        """Sensitivities on the first of these samples, and the choice."""
        looked_at = self.few(looked_at)
        costs, narrow = self._costs(), self.narrow
        total = len(looked_at) * len(changes_of(narrow))
        found = measure_sensitivities(
            self.network, narrow, looked_at, self.judge, lambda n: self.tell("sensitivities", n, total), self.saved, self.rights[: len(looked_at)]
        )
        search = Search(problem_of(found, self.layers, self.widths, costs), self.goal, self._drop)
        point = search.run()
        reference = search.point((0,) * len(self.layers))
        return Chosen(self.plan(point.choice), self.widths, self.layers, found, point, reference, self.latencies, search)

    @property
    def narrow(self) -> Forms:
        """Weights of fewer bits, of the layers that cost less with them than with any more."""
        lower = [(c[:, 1:] < np.minimum.accumulate(c, 1)[:, :-1]) for c in self._costs().values()]
        useful = np.logical_or.reduce(lower)
        return {b: {name: self.forms[b][name] for name, u in zip(self.layers, useful[:, n]) if u} for n, b in enumerate(self.widths[1:])}

    def few(self, samples: Sequence[Feeds]) -> Sequence[Feeds]:
        """The first of them, as many as it takes."""
        convs = weighted_layers(self.graph)
        products = sum(v.type.size * int(np.prod(v.inputs[1].shape[1:])) for v in convs) * len(changes_of(self.narrow))
        return samples[: max(LEAST, min(MOST, int(PRODUCTS / max(products, 1))))]

    def plan(self, choice: Choice) -> Plan:
        """The plan of a choice."""
        return Plan({name: Precision(self.widths[w]) for name, w in zip(self.layers, choice)})

    def _rounded(self) -> dict[int, pipeline.Quantized]:
        """The network in every width."""
        made = dict[int, pipeline.Quantized]()
        for n, bits in enumerate(self.widths):
            self.tell("rounding weights", n, len(self.widths))
            made[bits] = pipeline.quantized(self.graph, self.seen, replace(self.options, plan=Plan(default=Precision(bits))), Declined())
        return made

    def _costs(self) -> Mapping[str, NDArray[np.float64]]:
        convs = weighted_layers(self.graph)
        costs = {BYTES: np.array([[weight_bytes(v, b) for b in self.widths] for v in convs], np.float64)}
        if self.latencies is not None:
            costs[MILLISECONDS] = self.latencies.of(self.layers, self.widths)
            costs[MILLISECONDS][0] += self.latencies.other  # whatever the choice
        return costs

    def _drop(self, choice: Choice) -> Drop:
        self.tell("checking the promise", 0, 0)
        changed = {name: self.forms[self.widths[w]][name] for name, w in zip(self.layers, choice)}
        return drop_of(self.judge, self.answers, self.integer.answers(self.checked, changed))
