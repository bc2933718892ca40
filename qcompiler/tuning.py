"""Tiles chosen by measurement: `qcompile MODEL.onnx --tune TABLE.json`.

The model of a core in `backends.llvm.kernels.tiles` ranks the ways to compute a dense layer. Here the best `TRIED` of them are run: the
profiling build of the whole network is made once for each rank, the builds take turns, and for each problem (layers of equal shape share one)
that rank wins whose median is least; one that is not better than the model's own choice by `MARGIN` counts as noise. So each kernel is timed
where it will run, with its operands in the caches where its neighbours leave them.

The table is all that is kept. A program is a function of the network and the table: with the same table it has the same bytes anywhere, with
every table the same results. Problems that the table has are not measured again; for targets that do not run here it is only read.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .backends.llvm.kernels.conv_plan import problem_of
from .backends.llvm.kernels.table import scratch_of
from .backends.llvm.kernels.tiles import Problem
from .backends.llvm.kernels.tuned import candidates, key_of, text_of
from .backends.llvm.target import Target
from .errors import UsageError
from .ir.graph import Graph
from .passes.partition import partition
from .passes.plan_memory import Run, plan_memory
from .profile import times_in_turns
from .report import Feeds
from .runtime.cpu import cpu_name

TRIED = 8
"""Ways to compute a layer that are measured."""
MARGIN = 0.03
"""How much less time another way must take than the model's choice."""
SECONDS = 0.5
"""Of measurement for each way."""
FORMAT = "qcompiler tiles 1"


@dataclass(frozen=True)
class Table:
    """Tiles by problem, and where they were measured."""

    target: str
    cpu: str | None = None
    tiles: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, target: Target) -> Table:
        """The table in a file. UsageError where it is none, or one of another target."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            found = cls(str(data["target"]), data["cpu"], {str(k): str(v) for k, v in data["tiles"].items()})
            known = data["format"] == FORMAT
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
            raise UsageError(
                f"expected a table of tiles in '{path}', found {type(problem).__name__}: {problem}; delete it, or name another"
            ) from problem
        if not known or found.target != target.name:
            what = f"one of target {found.target}" if known else f"format {data['format']!r}"
            raise UsageError(f"expected a table of tiles of {target.name} ({FORMAT}) in '{path}', found {what}; name another with --tune")
        return found

    def save(self, path: Path) -> None:
        """Write the table, sorted."""
        content = {"format": FORMAT, "target": self.target, "cpu": self.cpu, "tiles": dict(sorted(self.tiles.items()))}
        try:
            path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        except OSError as problem:
            raise UsageError(f"cannot write '{path}': {problem.strerror}; choose another place with --tune") from problem

    def applied(self, target: Target) -> Target:
        """`target` with these tiles."""
        return replace(target, tuned=tuple(sorted(self.tiles.items())))


def problems(graph: Graph, target: Target) -> dict[str, Problem]:
    """What there is to choose in an integer `graph`: the problem of each dense layer, by the label of its kernel."""
    plan = plan_memory(graph, partition(graph), scratch_of(target))
    runs = [a for a in plan.actions if isinstance(a, Run)]
    return {run.step.result.name: p for run in runs if (p := problem_of(run, target)) is not None}


def tune(graph: Graph, target: Target, feeds: Feeds, table: Table | None = None, seconds: float = SECONDS) -> Table:
    """`table` with the tiles of all layers of the integer `graph` that it has not: measured on this CPU, on the sample `feeds`."""
    known = table or Table(target.name)
    layers = problems(graph, replace(target, tuned=()))
    missing = {name: p for name, p in layers.items() if key_of(p) not in known.tiles}
    if not missing or not target.runs_here:
        return known
    ways = {key_of(p): candidates(p, TRIED) for p in missing.values()}
    tables = [Table(target.name, None, {**known.tiles, **{k: text_of(w[min(n, len(w) - 1)]) for k, w in ways.items()}}) for n in range(TRIED)]
    times = times_in_turns([(graph, t.applied(target)) for t in tables], feeds, seconds)
    found = {k: text_of(ways[k][best]) for k, best in _winners(times, missing, ways).items()}
    return Table(target.name, cpu_name(), {**known.tiles, **found})


def _winners(times: Sequence[Mapping[str, float]], layers: Mapping[str, Problem], ways: Mapping[str, Sequence[object]]) -> dict[str, int]:
    """The best way for each problem, from the times of all layers in each way."""
    total = defaultdict[str, NDArray[np.float64]](lambda: np.zeros(len(times)))
    for name, p in layers.items():
        total[key_of(p)] += [t[name] for t in times]
    return {key: chosen(spent[: len(ways[key])]) for key, spent in total.items()}


def chosen(times: Sequence[float] | NDArray[np.float64]) -> int:
    """Which way to take: the fastest, if it is faster than the model's choice, the first, by more than noise."""
    best = int(np.argmin(times))
    return best if times[best] < (1 - MARGIN) * times[0] else 0
