"""Finding the first value in which a compiled program departs from the reference.

The program keeps no intermediate results, so the graph is cut: up to each stored value, it is compiled again for the same
target and compared. The cuts are tried by bisection, since what follows a wrong value is wrong as well.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.api import reference_run
from qcompiler.backends.emulate import emulated
from qcompiler.backends.image import flatten
from qcompiler.backends.llvm.lower import compile_object
from qcompiler.backends.llvm.target import Target, find_target
from qcompiler.ir.graph import Graph, Value, apply
from qcompiler.ir.ops import Dequantize
from qcompiler.passes.partition import partition
from qcompiler.runtime import Manifest, Program

Feeds = dict[str, NDArray[Any]]


def first_difference(graph: Graph, manifest: Manifest, feeds: Feeds) -> str | None:
    """The first stored value, in execution order, that differs from the reference on `feeds`, with its first wrong element."""
    target = find_target(manifest.target.name)
    values = [s.result for s in partition(graph) if s.result.type.quant is not None]
    place = bisect_left(range(len(values)), True, key=lambda i: difference(graph, values[i], target, feeds) is not None)
    return difference(graph, values[place], target, feeds) if place < len(values) else None


def difference(graph: Graph, value: Value, target: Target, feeds: Feeds) -> str | None:
    """What differs in `value`, or None."""
    cut = Graph(graph.inputs, (apply(Dequantize(), value, name=f"{value.name}.real"),), (value.name,))
    found, expected = run(cut, target, feeds)[value.name], reference_run(cut, feeds)[value.name]
    wrong = np.argwhere(found != expected)
    if not len(wrong):
        return None
    place = tuple(int(i) for i in wrong[0])
    return f"'{value.name}'{list(place)}: expected {expected[place]}, found {found[place]} ({len(wrong)} of {found.size} elements differ)"


def run(graph: Graph, target: Target, feeds: Feeds) -> Feeds:
    """The compiled graph on `feeds`, here or emulated."""
    code = compile_object(graph, target, "model")
    image = flatten(code.object)
    if target.runs_here:
        return Program.of_image(code.interface, image.data, image.entries).run(feeds)
    return emulated(code.interface, image, target.features).run(feeds)
