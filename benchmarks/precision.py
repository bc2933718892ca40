"""Choices of precision at equal bytes of weights, and how well estimates of sensitivity rank layers: `python -m benchmarks.precision [names]`.

    chosen      least expected loss within the budget (`passes/precision`)
    uniform     two neighbouring widths spread evenly over the network: a layer has the narrower one where that brings the share of bytes saved so far
                nearer to the budget's
    by SQNR     single changes in order of the greatest signal to noise of the answer, until the budget is kept (greedy)

Points lost are expected of labels that follow the float network's probabilities, or ranks, which is less a matter of luck than the metric.
The last two fill the budget: layers are widened again where that still fits. Sensitivities come from calibration data, the truth (the loss of each
single change) and the metric from evaluation data, Q/DQ networks throughout. Bytes are those of the layers, in parts of those at 8 bits. Budgets lie
between those of all layers at 2 bits, 0, and at 4 bits, 1: of four bits and more, most networks are hardly worse than in float.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from time import perf_counter
from typing import Any

import click
import numpy as np

from benchmarks.zoo import TASKS, Data
from qcompiler.frontend.lengths import import_forms
from qcompiler.passes.pipeline import Options
from qcompiler.passes.precision.auto import Auto, Chosen, prepare
from qcompiler.passes.precision.choose import LOSS, choose
from qcompiler.passes.precision.gradients import measure_second_order
from qcompiler.passes.precision.loss import Drop, drop_of
from qcompiler.passes.precision.search import BYTES, Choice, Goal
from qcompiler.passes.precision.sensitivity import measure_sensitivities, rank_correlations, weight_errors
from qcompiler.runtime.cpu import cpu_name

BUDGETS = (0.25, 0.375, 0.5, 0.75)
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


def measured(auto: Auto, choice: Choice, data: Data, floats: Sequence[Any]) -> tuple[Drop, float]:
    """(what is lost by the float network's own answers, metric) on all evaluation data."""
    changed = {name: auto.forms[auto.widths[w]][name] for name, w in zip(auto.layers, choice)}
    answers = list(auto.integer.answers(data.evaluation, changed))
    return drop_of(auto.judge, floats, answers), data.judge(answers)


def report(name: str, gradients: bool) -> None:
    """All rows of one network."""
    task, start = TASKS[name], perf_counter()
    data = task.load()
    graph = import_forms(task.path, None)[0]
    auto, looked_at, _ = prepare(graph, data.calibration, Options(), Goal(max_bytes=1 << 40), None, lambda *_: None, None)
    chosen = auto.run(looked_at)
    problem = chosen.search.problem
    costs = problem.costs[BYTES]
    floats = list(auto.network.answers(data.evaluation))
    eight = measured(auto, (0,) * len(costs), data, floats)[1]
    click.echo(f"{name}: float {shown(data.judge(floats))}, w8a8 {shown(eight)} ({task.metric.name}), {perf_counter() - start:.0f} s")
    found = chosen.sensitivities
    order = [(auto.layers.index(found.changes[i][0]), auto.widths.index(found.changes[i][1])) for i in np.argsort(found.noise)]
    least, four, most = costs.min(1).sum(), costs[:, auto.widths.index(4)].sum(), costs[:, 0].sum()
    for part in BUDGETS:
        budget = float(least + part * (four - least))
        best = choose(problem, LOSS, {BYTES: budget})
        rows = (best or (0,) * len(costs), uniform(costs, budget), greedy(order, costs, budget))
        results = [(measured(auto, choice, data, floats), spent(costs, choice) / most) for choice in rows]
        cells = (f"{shown(metric)} ({drop.mean:.2f}, {drop.loss:.4f}, {part:.3f})" for (drop, metric), part in results)
        click.echo(f"| {name} | {budget / most:.3f} | {' | '.join(cells)} |")
    if gradients:
        click.echo(f"| {name} | " + " | ".join(f"{k} {v:.2f}" for k, v in taus(auto, chosen, data, looked_at).items()) + " |")


def shown(metric: float) -> str:
    """Points with two digits; correlations, below one, with four."""
    return f"{metric:.4f}" if metric < 1 else f"{metric:.2f}"


@click.command()
@click.argument("names", nargs=-1)
@click.option("--correlations/--no-correlations", default=True, help="Rank correlations, too (needs torch).")
def main(names: tuple[str, ...], correlations: bool) -> None:
    """Print the tables."""
    click.echo(cpu_name())
    click.echo("| network | budget | chosen: metric (points lost, nats, bytes) | uniform | by SQNR |\n|---|---|---|---|---|")
    for name in names or NAMES:
        report(name, correlations)


if __name__ == "__main__":
    main()
