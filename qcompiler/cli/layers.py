"""`qcompile bench --layers`: where the time goes, against this CPU's peak and against the float layers."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

from qcompiler.runtime import Manifest

from .artifact import open_graphs
from .show import progress, say, show_table

if TYPE_CHECKING:
    from qcompiler.profile import LayerTime, Profile

DEEP = 256
"""Products per result from which a convolution is expected to reach the peak."""
SHOWN = 0.002
"""Layers of a smaller part of the time are summed up in one row."""


def measured(artifact: str, manifest: Manifest, feeds: dict[str, Any], model: str | None, seconds: float, quiet: bool) -> Profile:
    """Times of the layers of an artifact, and of the float network's where `model` names it."""
    from qcompiler.api import fitting
    from qcompiler.backends.llvm.target import find_target
    from qcompiler.profile import profile

    from .float_layers import float_layers

    with progress("measuring the layers", None, quiet):
        found = profile(fitting(open_graphs(artifact), feeds), find_target(manifest.target.name), feeds, seconds)
        return found if model is None else found.beside(float_layers(model, feeds, [x.name for x in found.layers]))


def show_layers(title: str, found: Profile) -> None:
    """The table, and what to conclude from it."""
    columns = ["layer", "operator", "kernel", ">us", ">% of time", ">GOP/s", ">% of peak", ">ops/byte", "limit", ">float us", ">times ours"]
    shown = [x for x in found.layers if x.milliseconds >= SHOWN * found.milliseconds]
    show_table(f"{title} on {found.cpu}", columns, [row(x, found.milliseconds) for x in shown])
    rest = found.milliseconds - sum(x.milliseconds for x in shown)
    say(f"{len(found.layers) - len(shown)} more of {1e3 * rest:.1f} us; {found.milliseconds:.4g} ms together, one thread")
    say(f"peak of this CPU's dot product {found.peak_gops:.0f} GOP/s, memory read at {found.read_gbs:.0f} GB/s")
    for line in conclusions(found):
        say(line)


def row(x: LayerTime, total: float) -> tuple[object, ...]:
    """Cells of one layer."""
    arithmetic = (f"{x.gops:.0f}", f"{x.percent_of_peak:.1f}", f"{x.intensity:.0f}", x.limit) if x.macs else (None, None, None, x.limit)
    floats = (None, None) if x.float_milliseconds is None else (f"{1e3 * x.float_milliseconds:.1f}", f"{x.speedup:.2f}" if x.speedup else None)
    return (shortened(x.name), x.operator, x.kernel, f"{1e3 * x.milliseconds:.1f}", f"{100 * x.milliseconds / total:.1f}", *arithmetic, *floats)


def shortened(name: str, width: int = 32) -> str:
    """The end of a name, which tells layers apart."""
    return name if len(name) <= width else "…" + name[1 - width :]


def conclusions(found: Profile) -> list[str]:
    """How near the peak, and where the float layer is faster."""
    lines = list[str]()
    deep = [x.percent_of_peak for x in found.layers if x.depth >= DEEP and x.limit == "compute"]
    if deep:
        lines.append(f"{len(deep)} layers of {DEEP} products per result or more: median {median(deep):.0f} % of the peak")
    return lines + (promise(found) if found.comparisons else [])


def promise(found: Profile) -> list[str]:
    """Whether every layer, or group of layers that the float network fuses otherwise, is as fast as in float; where not, by how much."""
    slower, all_ours = found.slower_than_float, sum(x.milliseconds for x in found.comparisons)
    floats = sum(x.float_milliseconds for x in found.comparisons)
    lines = [f"slower than float: {' + '.join(x.layers)}, {1e3 * x.milliseconds:.1f} us against {1e3 * x.float_milliseconds:.1f}" for x in slower]
    lines.append(f"{len(found.comparisons) - len(slower)} of {len(found.comparisons)} layers or groups are no slower than the float network's")
    lines.append(f"together {1e3 * all_ours:.0f} us against {1e3 * floats:.0f}, {floats / max(all_ours, 1e-9):.2f} times")
    if alone := found.uncompared:
        lines.append(f"without a counterpart there: {len(alone)}, {1e3 * sum(x.milliseconds for x in alone):.1f} us")
    return lines
