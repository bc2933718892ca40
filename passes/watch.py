"""What the environment asks to see of the road: QC_VERIFY=1 checks the graph between passes, QC_DUMP=folder writes it down.

Files are numbered in the order in which they were written, behind those that the folder already holds.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from qcompiler.errors import ProofError
from qcompiler.ir.graph import Graph
from qcompiler.ir.text import to_text
from qcompiler.ir.verify import Stage, verify


def watched(name: str, graph: Graph, stage: Stage | None = None) -> Graph:
    """The same graph, which pass `name` has just made. ProofError names the pass after which it is illegal at `stage` (None: not asked)."""
    dump(f"{name}.txt", lambda: to_text(graph))
    if stage is not None and os.environ.get("QC_VERIFY"):
        try:
            verify(graph, stage)
        except ProofError as problem:
            raise ProofError(f"after pass {name}: {problem}") from problem
    return graph


def dump(name: str, text: Callable[[], str]) -> None:
    """Write the text into the folder that QC_DUMP names, if it does."""
    folder = os.environ.get("QC_DUMP")
    if folder:
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{len(os.listdir(place)):03}-{name}").write_text(text(), encoding="utf-8")
