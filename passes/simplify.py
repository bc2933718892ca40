"""The canonical float graph: what the frontend writes down plainly, in the few terms that later passes know.

Afterwards dense layers and batch normalizations are convolutions, transpositions stand only where the model's own inputs
and outputs (or true shuffles) need them, padding is part of windows, and what reads one tensor pointwise is one `Map`.
"""

from __future__ import annotations

from collections.abc import Callable

from qcompiler.ir.graph import Declined, Graph
from qcompiler.ir.verify import Stage

from .affine_to_depthwise import affine_to_depthwise
from .canonicalize import canonicalize
from .deduplicate import deduplicate
from .dense_to_conv import dense_to_conv
from .fold_affine import fold_affine
from .fold_constants import fold_constants
from .map_unary import map_unary
from .merge_pads import merge_pads
from .name_values import name_values
from .recognize_attention import recognize_attention
from .recognize_normalize import recognize_normalize
from .recognize_rotate import recognize_rotate
from .remove_identities import remove_identities
from .sink_reshapes import sink_reshapes
from .sink_transposes import sink_transposes
from .subpixel import subpixel
from .turn_inputs import turn_inputs
from .watch import watched

Pass = Callable[[Graph, Declined | None], Graph]

TIDY: tuple[Pass, ...] = (fold_constants, remove_identities, canonicalize, deduplicate, sink_reshapes)
FOLD: tuple[Pass, ...] = (*TIDY, merge_pads, fold_affine)

RECOGNIZE: tuple[Pass, ...] = (recognize_normalize, recognize_rotate, recognize_attention)
LAYOUT: tuple[Pass, ...] = (*TIDY, *RECOGNIZE, subpixel, sink_transposes)
STAGES: tuple[tuple[Pass, ...], ...] = (
    (*FOLD, dense_to_conv),
    (*FOLD, dense_to_conv, affine_to_depthwise),
    (*FOLD, dense_to_conv, affine_to_depthwise, map_unary),
)


def simplify(graph: Graph, declined: Declined | None = None) -> Graph:
    """Run each stage until nothing changes. `declined` learns what was not folded in the end, and why."""
    graph = turn_inputs(settle(graph, LAYOUT, declined), lambda g: settle(g, LAYOUT))
    for stage in STAGES:
        graph = settle(graph, stage, declined)
    return name_values(graph)


def settle(graph: Graph, passes: tuple[Pass, ...], declined: Declined | None = None, limit: int = 50) -> Graph:
    """Run `passes` in turn until none changes the graph. Only the last, idle round says what it declined.

    Raises RuntimeError after `limit` rounds: two passes undo each other.
    """
    for _ in range(limit):
        before, reasons = graph, Declined()
        for run in passes:
            made = run(graph, reasons)
            graph = made if made is graph else watched(run.__name__, made, Stage.float)
        if graph is before:
            if declined is not None:
                declined.reasons.update(reasons.reasons)
            return graph
    raise RuntimeError(f"passes did not settle after {limit} rounds: {[p.__name__ for p in passes]}")
