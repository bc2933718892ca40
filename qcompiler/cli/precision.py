"""Options of precisions: a name, a plan, or an automatic choice with its limits; and what is told of a choice."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from qcompiler.errors import UsageError

from .options import LABELS, byte_count, stacked

if TYPE_CHECKING:
    from qcompiler.api import QuantizedModel
    from qcompiler.backends.llvm.target import Target
    from qcompiler.passes.precision.costs import Latencies
    from qcompiler.passes.precision.plan import Plan
    from qcompiler.passes.precision.search import Goal

F = TypeVar("F", bound=Callable[..., Any])
AUTO = "auto"
DROP_HELP = "--precision auto: points of accuracy that may be lost, as expected from calibration samples that are held out"
SIZE_HELP = "--precision auto: bytes of weights that layers may take, such as 1.5MB"
LATENCY_HELP = "--precision auto: time of one call on one thread, such as 2ms; measured where the target runs here, else estimated"
TABLE_HELP = "--precision auto: a latency table, read where the file exists, else written to it"
LABELS_HELP = f"--precision auto: right answers of calibration data, where they are known, judge what fewer bits cost; {LABELS}"
PARETO_HELP = "--precision auto: draw what there is to choose from as a page"


@dataclass(frozen=True)
class Budget:
    """The limits of an automatic choice, and its files."""

    max_drop: float | None = None
    max_size: int | None = None
    max_latency: float | None = None
    """Milliseconds."""
    latency_table: str | None = None
    labels: str | None = None
    pareto: str | None = None

    @property
    def limited(self) -> bool:
        """Whether there is any limit."""
        return (self.max_drop, self.max_size, self.max_latency) != (None, None, None)


@dataclass(frozen=True)
class Wanted:
    """The precision by name or by plan; for an automatic choice, what it is to keep to and which latencies it looks at."""

    precision: str | Plan = "w8a8"
    goal: Goal | None = None
    latencies: Latencies | Target | None = None
    labels: str | None = None
    """The array of calibration data with the right answers."""


W8A8 = Wanted()


def milliseconds(_context: click.Context, _option: click.Parameter, text: str | None) -> float | None:
    """From 2ms, 0.5s or 800us."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *(us|ms|s)", text, re.IGNORECASE)
    if found is None or not float(found[1]):
        raise click.BadParameter(f"expected a time such as 2ms, 800us or 0.5s, found {text!r}.")
    return float(found[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[found[2].lower()]


_BUDGET = (
    click.option("--max-drop", type=click.FloatRange(0, min_open=True), metavar="POINTS", help=DROP_HELP),
    click.option("--max-size", callback=byte_count, metavar="SIZE", help=SIZE_HELP),
    click.option("--max-latency", callback=milliseconds, metavar="TIME", help=LATENCY_HELP),
    click.option("--latency-table", metavar="FILE.json", help=TABLE_HELP),
    click.option("--labels", metavar="NAME", help=LABELS_HELP),
    click.option("--pareto", metavar="FILE.html", help=PARETO_HELP),
)


def budget_options(command: F) -> F:
    """The flags of `Budget`, handed to the command as one argument `budget`."""

    def gathered(*args: Any, **given: Any) -> Any:
        taken = {name: given.pop(name) for name in ("max_drop", "max_size", "max_latency", "latency_table", "labels", "pareto")}
        return command(*args, budget=Budget(**taken), **given)

    gathered.__doc__ = command.__doc__
    gathered.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    return stacked(gathered, _BUDGET)  # type: ignore[return-value]


def wanted_precision(text: str, budget: Budget, target: str) -> Wanted:
    """UsageError where options do not belong together, or a file cannot be read."""
    from qcompiler.passes.precision.plan import Precision, read_plan
    from qcompiler.passes.precision.search import Goal

    if text == AUTO and not budget.limited:
        raise UsageError("--precision auto needs --max-drop POINTS, --max-size SIZE or --max-latency TIME to choose by")
    if text != AUTO and budget != Budget():
        options = "--max-drop, --max-size, --max-latency, --latency-table, --labels and --pareto"
        raise UsageError(f"{options} belong to --precision auto, found --precision {text}")
    if text == AUTO:
        return Wanted(text, Goal(budget.max_drop, budget.max_size, budget.max_latency), latencies_of(budget, target), budget.labels)
    if text.endswith(".toml"):
        return Wanted(read_plan(text))
    Precision.parse(text)
    return Wanted(text)


def latencies_of(budget: Budget, target: str) -> Latencies | Target | None:
    """The table in the file, or the target where it is to be made; None where latency does not count."""
    from qcompiler.backends.llvm.target import find_target
    from qcompiler.passes.precision.costs import Latencies

    if budget.latency_table is not None and Path(budget.latency_table).exists():
        return Latencies.read(budget.latency_table)
    if budget.max_latency is None and budget.latency_table is None:
        return None
    try:
        return find_target(target)
    except UsageError as problem:
        raise UsageError(f"latencies are found for targets with code, not for '{target}'; give a latency table, or leave latency out") from problem


def cache_folder() -> Path:
    """Where sensitivities are kept: a run that was interrupted goes on from them."""
    import os

    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qcompiler" / "sensitivities"


def write_choice(model: QuantizedModel, budget: Budget) -> dict[str, str]:
    """Write the files that `budget` names; what was written."""
    from .cost_page import cost_page

    choice, files = model.choice, dict[str, str]()
    if choice is None:
        return files
    if budget.latency_table is not None and choice.latencies is not None and not Path(budget.latency_table).exists():
        choice.latencies.save(budget.latency_table)
        files["latency table"] = budget.latency_table
    if budget.pareto is not None:
        try:
            Path(budget.pareto).write_text(cost_page(choice), encoding="utf-8")
        except OSError as problem:
            raise UsageError(f"cannot write '{budget.pareto}': {problem.strerror}; choose another place with --pareto") from problem
        files["pareto"] = budget.pareto
    return files


def choice_of(model: QuantizedModel) -> dict[str, Any] | None:
    """What was chosen by --precision auto, and what it is expected to lose."""
    if model.choice is None or model.choice.point.drop is None or model.choice.reference.drop is None:
        return None
    found, reference = model.choice.point, model.choice.reference
    return {
        "layers": {name: str(p) for name, p in model.choice.plan.layers.items()},
        "expected_drop": found.drop.mean if found.drop else None,
        "standard_error": found.drop.error if found.drop else None,
        "expected_drop_w8a8": reference.drop.mean if reference.drop else None,
        "bytes": int(found.costs["bytes"]),
        "bytes_w8a8": int(reference.costs["bytes"]),
        "milliseconds": found.costs.get("milliseconds"),
        "milliseconds_w8a8": reference.costs.get("milliseconds"),
    }


def told_choice(choice: dict[str, Any]) -> str:
    """The same in a line."""
    narrow = sum(p != "w8a8" for p in choice["layers"].values())
    share = 100 * choice["bytes"] / max(choice["bytes_w8a8"], 1)
    time = "" if choice["milliseconds"] is None else f" {choice['milliseconds']:.3g} ms ({choice['milliseconds_w8a8']:.3g} at w8a8),"
    drop = f"{choice['expected_drop']:.2f} +- {choice['standard_error']:.2f} points expected to be lost ({choice['expected_drop_w8a8']:.2f} at w8a8)"
    return f"{narrow} of {len(choice['layers'])} layers below 8 bits, {share:.0f} % of the weights' bytes,{time} {drop}"
