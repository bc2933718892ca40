"""Choices of precision at equal bytes of weights, and how well estimates of sensitivity rank layers: `python -m benchmarks.precision [names]`.

    chosen      least expected loss within the budget (`passes/precision`)
    uniform     4 bits spread evenly over the network: a layer is narrowed where that brings the share of bytes narrowed so far nearer to the budget's
    by SQNR     layers are narrowed in order of the greatest signal to noise, until the budget is kept (greedy)

Sensitivities come from calibration data, the truth (the loss of each single change) and the accuracy from evaluation data, Q/DQ networks
throughout. Bytes are those of the layers, in parts of those at 8 bits; the least that the network allows is 0 and all at 8 bits is 1 in BUDGETS.
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
from qcompiler.passes.precision.loss import drop_of
from qcompiler.passes.precision.search import BYTES, Choice, Goal
from qcompiler.passes.precision.sensitivity import measure_sensitivities, rank_correlations, weight_errors
from qcompiler.runtime.cpu import cpu_name

BUDGETS = (0.15, 0.4, 0.65)
NAMES = ("cifar10_resnet20", "cifar10_resnet8_mlperftiny", "kws_dscnn", "imagenet_squeezenet11", "imagenet_mobilenetv2")
GRADIENT_SAMPLES = 32


def greedy(order: Iterable[int], costs: Any, budget: float) -> Choice:
    """Layers narrowed in this order until `costs` [layers, 2] are within the budget."""
    choice = [0] * len(costs)
    for layer in order:
        if costs[np.arange(len(costs)), choice].sum() <= budget:
            break
        choice[layer] = int(costs[layer, 1] < costs[layer, 0])
    return tuple(choice)


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


def taus(auto: Auto, chosen: Chosen, data: Data, looked_at: Sequence[Any]) -> Mapping[str, float]:
    """Kendall's tau of every estimate with the loss of the same changes on evaluation data."""
    narrow = {b: auto.forms[b] for b in auto.widths[1:]}
    truth = measure_sensitivities(auto.network, narrow, auto.few(data.evaluation), auto.judge).loss
    slopes = measure_second_order(auto.graph, narrow, auto.few(looked_at)[:GRADIENT_SAMPLES], auto.judge)
    others = {"weight MSE": weight_errors(auto.graph, narrow), "Hessian trace": slopes.hessian, "Fisher": slopes.fisher}
    return rank_correlations(chosen.sensitivities, truth, others)


def measured(auto: Auto, choice: Choice, data: Data, floats: Sequence[Any]) -> tuple[float, float]:
    """(loss in nats, metric) on all evaluation data."""
    changed = {name: auto.forms[auto.widths[w]][name] for name, w in zip(auto.layers, choice)}
    answers = list(auto.integer.answers(data.evaluation, changed))
    return drop_of(auto.judge, floats, answers).loss, data.judge(answers)


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
    click.echo(
        f"{name}: float {data.judge(floats):.2f}, w8a8 {measured(auto, (0,) * len(costs), data, floats)[1]:.2f}, {perf_counter() - start:.0f} s"
    )
    order = np.argsort(chosen.sensitivities.noise)
    least, most = costs.min(1).sum(), costs.max(1).sum()
    for part in BUDGETS:
        budget = float(least + part * (most - least))
        best = choose(problem, LOSS, {BYTES: budget})
        rows = {"chosen": best or (0,) * len(costs), "uniform": even(costs, budget), "by SQNR": greedy(order, costs, budget)}
        cells = []
        for choice in rows.values():
            loss, metric = measured(auto, choice, data, floats)
            cells.append(f"{metric:.2f} ({loss:.4f}, {costs[np.arange(len(costs)), choice].sum() / most:.2f})")
        click.echo(f"| {name} | {budget / most:.2f} | {' | '.join(cells)} |")
    if gradients:
        click.echo(f"| {name} | " + " | ".join(f"{k} {v:.2f}" for k, v in taus(auto, chosen, data, looked_at).items()) + " |")


@click.command()
@click.argument("names", nargs=-1)
@click.option("--correlations/--no-correlations", default=True, help="Rank correlations, too (needs torch).")
def main(names: tuple[str, ...], correlations: bool) -> None:
    """Print the tables."""
    click.echo(cpu_name())
    click.echo("| network | budget | chosen: metric (nats, bytes) | uniform | by SQNR |\n|---|---|---|---|---|")
    for name in names or NAMES:
        report(name, correlations)


if __name__ == "__main__":
    main()
