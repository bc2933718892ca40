"""What one precision for all layers loses, and how much of that is luck: `python -m benchmarks.lost imagenet_mobilenetv2 --precision w4a8 --draws 5`.

Integer programs of this machine, against the float network. Which few answers change is luck; three figures of each network tell more than the metric
of the data as they are:

    in all views                    the mean over pictures mirrored and moved (`views.py`), and the least and the greatest of a single view
    by the float network            if the right classes followed its probabilities, points: the mean over all views of p[its answer] - p[ours]
    divergence                      in nats, of the data as they are

The whole is repeated with the calibration samples in other orders: other samples are rounded by, tuned to and held out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from time import perf_counter

import click
import numpy as np

from benchmarks.measure import of_program, of_session, options_for, session
from benchmarks.precision import judged, seen, shuffled
from benchmarks.views import MOVED
from benchmarks.zoo import TASKS, Array, Data, Task
from qcompiler.api import build, quantize_model
from qcompiler.errors import UsageError
from qcompiler.passes.precision.loss import Classes, judge_of
from qcompiler.passes.torch_network import judged as judged_part
from qcompiler.runtime.cpu import cpu_name


@dataclass(frozen=True)
class Lost:
    """By one network, in the order of the columns; seconds are those of quantization."""

    plain: float
    moved: float
    least: float
    greatest: float
    expected: float
    divergence: float
    seconds: float


HEAD = "lost | in all views | by the float network | divergence | seconds |\n|---|---|---|---|---|---|"


def lost(task: Task, data: Data, floats: Sequence[Array], precision: str, draw: int) -> Lost:
    """With the calibration samples in one order; `floats` are the float network's answers to all views. UsageError where these are no classes."""
    start = perf_counter()
    model = quantize_model(task.path, shuffled(data.calibration, draw), options=options_for(precision))
    seconds, run = perf_counter() - start, of_program(build(model))
    judge = judge_of(judged_part(model.graphs.float_graph), floats[: len(data.evaluation)])
    if not isinstance(judge, Classes):
        raise UsageError(f"expected a network that answers with classes, found {task.name}; leave it out")
    answers = [run(x) for x in seen(data, MOVED)]
    single = differences(data, floats, answers)
    divergence = float(np.mean([judge.loss(a, b) for a, b in zip(floats[: len(data.evaluation)], answers)]))
    return Lost(single[0], float(np.mean(single)), min(single), max(single), expected(judge, floats, answers), divergence, seconds)


def differences(data: Data, floats: Sequence[Array], answers: Sequence[Array]) -> list[float]:
    """Points by which the metric of `answers` is lower, one for each view."""
    count = len(data.evaluation)
    parts = (slice(first, first + count) for first in range(0, len(answers), count))
    return [judged(data, floats[part]) - judged(data, answers[part]) for part in parts]


def expected(judge: Classes, floats: Sequence[Array], answers: Sequence[Array]) -> float:
    """Points that labels which follow the float network's probabilities would lose."""
    firsts = (np.exp([judge.chances(a, np.array([y.argmax()])) for y in (a, b)]) for a, b in zip(floats, answers, strict=True))
    return 100 * float(np.mean([own - ours for own, ours in firsts]))


def line(name: str, cells: Iterable[str]) -> str:
    """A row of the table."""
    return f"| {name} | " + " | ".join(cells) + " |"


def cells_of(found: Lost) -> list[str]:
    """Of one draw."""
    moved = f"{found.moved:.2f} ({found.least:.2f} to {found.greatest:.2f})"
    return [f"{found.plain:.2f}", moved, f"{found.expected:.2f}", f"{found.divergence:.4f}", f"{found.seconds:.0f}"]


def summary(rows: Sequence[Lost]) -> list[str]:
    """Means over draws and their standard errors; the range is over all of them."""
    table = np.array([astuple(r) for r in rows])
    means, errors = table.mean(0), table.std(0, ddof=1) / np.sqrt(len(rows))
    plain, moved, chance = (f"{means[i]:.2f} +- {errors[i]:.2f}" for i in (0, 1, 4))
    return [plain, f"{moved} ({table[:, 2].min():.2f} to {table[:, 3].max():.2f})", chance, f"{means[5]:.4f}", f"{means[6]:.0f}"]


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--precision", default="w4a8", show_default=True)
@click.option("--draws", type=click.IntRange(1), default=1, show_default=True, help="Orders of the calibration samples; the first is the file's.")
def main(names: tuple[str, ...], precision: str, draws: int) -> None:
    """Print the table. Networks are image classifiers of the zoo."""
    click.echo(f"{cpu_name()}\n\n| network, {precision} | {HEAD}")
    for name in names:
        task, data = TASKS[name], TASKS[name].load()
        run = of_session(session(str(task.path), threads=0))
        floats = [run(x) for x in seen(data, MOVED)]
        rows = []
        for draw in range(draws):
            rows.append(lost(task, data, floats, precision, draw))
            click.echo(line(f"{name} ({judged(data, floats[: len(data.evaluation)]):.2f}), order {draw}", cells_of(rows[-1])))
        if draws > 1:
            click.echo(line(f"{name}, all orders", summary(rows)))


if __name__ == "__main__":
    main()
