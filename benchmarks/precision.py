"""Choices of precision at equal bytes of weights, and how well estimates of sensitivity rank layers: `python -m benchmarks.precision [names]`.

    chosen      least expected loss within the budget (`passes/precision`)
    uniform     two neighbouring widths spread evenly over the network: a layer has the narrower one where that brings the share of bytes saved so far
                nearer to the budget's
    by SQNR     single changes in order of the greatest signal to noise of the answer, until the budget is kept (greedy)

Points lost are expected of labels that follow the float network's probabilities, or ranks, which is less a matter of luck than the metric.
The last two fill the budget: layers are widened again where that still fits. Sensitivities come from calibration data, the truth (the loss of each
single change) and the metric from evaluation data, Q/DQ networks throughout. Bytes are those of the layers, in parts of those at 8 bits. Budgets lie
between those of all layers at 2 bits, 0, and at 4 bits, 1: of four bits and more, most networks are hardly worse than in float.

Which few answers change is luck, and a file of a thousand labels ranks only networks that are some points apart. So the whole may be repeated with
the calibration samples in other orders (`--draws`): other samples are held out, rounded and chosen by, and other answers change. And labelled
pictures may be shown mirrored and moved, too (`--views`, see `views.py`): the metric is the mean over all views, points lost and loss are those of
pictures as they are.

With `--labels`, the choice is made by the right classes of the calibration samples, too (`passes/precision/labels.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from time import perf_counter
from typing import Any

import click
import numpy as np

from benchmarks.views import MOVED, PLAIN, View
from benchmarks.zoo import TASKS, Data, Metric, Task
from qcompiler.errors import UsageError
from qcompiler.frontend.lengths import import_forms
from qcompiler.passes.pipeline import Options
from qcompiler.passes.precision.auto import Auto, Chosen, prepare
from qcompiler.passes.precision.choose import LOSS, choose
from qcompiler.passes.precision.gradients import measure_second_order
from qcompiler.passes.precision.loss import Drop, drop_of
from qcompiler.passes.precision.search import BYTES, Choice, Goal
from qcompiler.passes.precision.sensitivity import measure_sensitivities, rank_correlations, weight_errors
from qcompiler.runtime.cpu import cpu_name

BUDGETS = (0.125, 0.25, 0.375, 0.5, 0.75)
NAMES = ("cifar10_resnet20", "imagenet_squeezenet11", "imagenet_mobilenetv2", "minilm_l6_sts", "stories260k_lm")
GRADIENT_SAMPLES = 32


def greedy(order: Iterable[tuple[int, int]], costs: Any, budget: float) -> Choice:
    """Changes (layer, width) in this order until `costs` [layers, widths] are within the budget."""
    choice, changed = [0] * len(costs), list[int]()
    for layer, width in order:
        if spent(costs, choice) <= budget:
            break
        if width > choice[layer] and costs[layer, width] < costs[layer, choice[layer]]:
            choice[layer] = width
            changed.append(layer)
    return filled(choice, changed[::-1], costs, budget)


def uniform(costs: Any, budget: float) -> Choice:
    """Of the two widths whose bytes the budget lies between, the narrower one evenly along the network."""
    wide = next(w for w in range(costs.shape[1] - 1) if costs[:, w + 1].sum() <= budget)
    return filled([wide + w for w in even(costs[:, wide : wide + 2], budget)], range(len(costs)), costs, budget)


def even(costs: Any, budget: float) -> Choice:
    """Layers narrowed along the network so that the bytes saved keep pace with those passed, then to the budget."""
    saved = costs[:, 0] - costs[:, 1]
    part = (costs[:, 0].sum() - budget) / max(saved.sum(), 1)
    choice, passed, taken = [0] * len(costs), 0.0, 0.0
    for layer, s in enumerate(saved):
        passed += s
        if s > 0 and taken + s / 2 <= part * passed:
            choice[layer], taken = 1, taken + s
    left = [layer for layer in np.argsort(saved) if saved[layer] > 0 and not choice[layer]]
    while taken < part * passed - 1e-6 and left:
        layer = next((x for x in left if taken + saved[x] >= part * passed), left[-1])
        left.remove(layer)
        choice[layer], taken = 1, taken + saved[layer]
    return tuple(choice)


def filled(choice: Sequence[int], order: Iterable[int], costs: Any, budget: float) -> Choice:
    """With layers, in this order, as wide as the budget allows."""
    found = list(choice)
    for layer in order:
        fits = (w for w in range(found[layer]) if spent(costs, found) + costs[layer, w] - costs[layer, found[layer]] <= budget)
        found[layer] = next(fits, found[layer])
    return tuple(found)


def spent(costs: Any, choice: Sequence[int]) -> float:
    """Bytes."""
    return float(costs[np.arange(len(costs)), list(choice)].sum())


def taus(auto: Auto, chosen: Chosen, data: Data, looked_at: Sequence[Any]) -> Mapping[str, float]:
    """Kendall's tau of every estimate with the loss of the same changes on evaluation data."""
    narrow = auto.narrow
    truth = measure_sensitivities(auto.network, narrow, auto.few(data.evaluation), auto.judge).loss
    slopes = measure_second_order(auto.graph, narrow, auto.few(looked_at)[:GRADIENT_SAMPLES], auto.judge)
    others = {"weight MSE": weight_errors(auto.graph, narrow), "Hessian trace": slopes.hessian, "Fisher": slopes.fisher}
    return rank_correlations(chosen.sensitivities, truth, others)


def measured(auto: Auto, choice: Choice, data: Data, floats: Sequence[Any], views: Sequence[View]) -> tuple[Drop, float]:
    """(what is lost by the float network's own answers, metric) on all evaluation data."""
    changed = {name: auto.forms[auto.widths[w]][name] for name, w in zip(auto.layers, choice)}
    answers = list(auto.integer.answers(seen(data, views), changed))
    return drop_of(auto.judge, floats, answers[: len(floats)]), judged(data, answers)


def seen(data: Data, views: Sequence[View]) -> Iterator[Any]:
    """Evaluation data in every view, one view after the other."""
    return (view(sample) for view in views for sample in data.evaluation)


def judged(data: Data, answers: Sequence[Any]) -> float:
    """The metric of answers to `seen`: the mean over views."""
    count = len(data.evaluation)
    return float(np.mean([data.judge(answers[first : first + count]) for first in range(0, len(answers), count)]))


@dataclass(frozen=True)
class Result:
    """What one network of a row does: its metric, points lost, loss in nats and part of the bytes at 8 bits."""

    metric: float
    lost: float
    loss: float
    part: float


LABELS = "right classes"
RIVALS = ("uniform", "by SQNR")
Row = tuple[Result, ...]
"""The choice, and its rivals."""


def shuffled(calibration: Sequence[Any], draw: int) -> Sequence[Any]:
    """Calibration samples in an order of their own: others are held out, looked at and rounded by. Draw 0 is the order of the file."""
    order = np.random.default_rng(draw).permutation(len(calibration)) if draw else range(len(calibration))
    return [calibration[i] for i in order]


def prepared(task: Task, data: Data, draw: int, labels: bool = False) -> tuple[Auto, Sequence[Any], Chosen]:
    """All that one draw of calibration samples leads to, perhaps with their `labels`."""
    graph, samples, key = import_forms(task.path, None)[0], data.calibration, LABELS if labels else None
    if labels:
        samples = [{**x, LABELS: right} for x, right in zip(samples, known(task, data), strict=True)]
    auto, looked_at, _ = prepare(graph, shuffled(samples, draw), Options(), Goal(max_bytes=1 << 40), None, lambda *_: None, None, key)
    return auto, looked_at, auto.run(looked_at)


def known(task: Task, data: Data) -> Sequence[Any]:
    """The right classes of the calibration samples. UsageError where they are not known."""
    if data.right is None:
        raise UsageError(f"the calibration data of {task.name} have no labels; leave --labels out")
    return data.right


def rows(auto: Auto, chosen: Chosen, data: Data, floats: Sequence[Any], views: Sequence[View]) -> list[tuple[float, Row]]:
    """(budget, results) for each of `BUDGETS`; `floats` are the float network's answers to the data as they are."""
    problem, found = chosen.search.problem, chosen.sensitivities
    costs = problem.costs[BYTES]
    order = [(auto.layers.index(found.changes[i][0]), auto.widths.index(found.changes[i][1])) for i in np.argsort(found.noise)]
    least, four, most = costs.min(1).sum(), costs[:, auto.widths.index(4)].sum(), costs[:, 0].sum()
    made = list[tuple[float, Row]]()
    for part in BUDGETS:
        budget = float(least + part * (four - least))
        best = choose(problem, LOSS, {BYTES: budget})
        assert best is not None, "all layers at 2 bits are within every budget"
        choices = best, uniform(costs, budget), greedy(order, costs, budget)
        made.append((budget / most, tuple(result(auto, c, data, floats, views, spent(costs, c) / most) for c in choices)))
    return made


def result(auto: Auto, choice: Choice, data: Data, floats: Sequence[Any], views: Sequence[View], part: float) -> Result:
    """Of a choice, on all evaluation data."""
    drop, metric = measured(auto, choice, data, floats, views)
    return Result(metric, drop.mean, drop.loss, part)


def report(name: str, draws: int, gradients: bool, views: Sequence[View] = PLAIN, labels: bool = False) -> None:
    """All rows of one network: means over draws of the calibration samples."""
    task, start = TASKS[name], perf_counter()
    data, found = task.load(), list[list[tuple[float, Row]]]()
    for draw in range(draws):
        auto, looked_at, chosen = prepared(task, data, draw, labels)
        floats = list(auto.network.answers(seen(data, views if draw == 0 else PLAIN)))
        if draw == 0:
            metric, correlations = judged(data, floats), taus(auto, chosen, data, looked_at) if gradients else {}
        found.append(rows(auto, chosen, data, floats[: len(data.evaluation)], views))
    click.echo(f"{name}: float {shown(metric)} ({task.metric.name}), {draws} draws, {perf_counter() - start:.0f} s")
    for same in zip(*found, strict=True):
        cells = [shown_mean([row[n] for _, row in same]) for n in range(1 + len(RIVALS))]
        behind = [difference(task.metric, [row[0] for _, row in same], [row[n] for _, row in same]) for n in range(1, 1 + len(RIVALS))]
        click.echo(f"| {name} | {same[0][0]:.3f} | {cells[0]} | " + " | ".join(f"{c}: {b}" for c, b in zip(cells[1:], behind)) + " |")
    if correlations:
        click.echo(f"| {name} | " + " | ".join(f"{k} {v:.2f}" for k, v in correlations.items()) + " |")


def shown_mean(results: Sequence[Result]) -> str:
    """A cell of the table."""
    metric, lost, loss, part = (float(np.mean([getattr(r, f.name) for r in results])) for f in fields(Result))
    return f"{shown(metric)} ({lost:.2f}, {loss:.4f}, {part:.3f})"


def difference(metric: Metric, chosen: Sequence[Result], rival: Sequence[Result]) -> str:
    """By how much the rival is worse, in the unit of the metric: mean over draws and its standard error."""
    worse = [metric.loss(c.metric, r.metric) for c, r in zip(chosen, rival, strict=True)]
    digits = digits_of(float(np.mean([c.metric for c in chosen])))
    error = f" +- {np.std(worse, ddof=1) / np.sqrt(len(worse)):.{digits}f}" if len(worse) > 1 else ""
    return f"{np.mean(worse):+.{digits}f}{error}"


def shown(metric: float) -> str:
    """Points with two digits; correlations, below one, with four."""
    return f"{metric:.{digits_of(metric)}f}"


def digits_of(metric: float) -> int:
    """Behind the point."""
    return 4 if metric < 1 else 2


@click.command()
@click.argument("names", nargs=-1)
@click.option("--correlations/--no-correlations", default=True, help="Rank correlations, too (needs torch).")
@click.option(
    "--draws", type=click.IntRange(1), default=1, show_default=True, help="Orders of the calibration samples, over which results are averaged."
)
@click.option("--labels", is_flag=True, help="Show the labels of calibration samples to the choice.")
@click.option("--views", is_flag=True, help="Show labelled pictures mirrored and moved, too.")
def main(names: tuple[str, ...], correlations: bool, draws: int, labels: bool, views: bool) -> None:
    """Print the tables."""
    click.echo(cpu_name())
    head = " | ".join(f"{r}: worse by, over draws" for r in RIVALS)
    click.echo(f"| network | budget | chosen: metric (points lost, nats, bytes) | {head} |\n|---|---|---|---|---|")
    for name in names or NAMES:
        report(name, draws, correlations, MOVED if views else PLAIN, labels)


if __name__ == "__main__":
    main()
