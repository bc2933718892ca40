"""What a layer costs in each width: bytes of its weights, and milliseconds where they were measured or modelled.

Weights of at most four bits take their bits, beside three for each group's multiplier, rounded up to bytes; all others, and depthwise ones, a byte.
A latency table is a JSON file, so that other tools can read and write it; milliseconds are those of one thread:

    {"target": "x86-64-avx512vnni", "cpu": "...",              null where latencies are modelled
     "how": "...",                                             how they were found, for people
     "widths": [8, 4],                                         bits of weights, one column each
     "layers": {"conv1": [0.12, 0.09], ...},                   milliseconds
     "other": 0.3,                                             milliseconds of all that has no weights
     "bytes": {"conv1": [4608, 2304], ...}, "arena": 12345}    of weights, and of working memory
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import UsageError
from qcompiler.ir.graph import Value
from qcompiler.ir.ops import Conv
from qcompiler.passes.weight_grid import NARROW, bytes_of_multipliers, has_groups


def weight_bytes(v: Value, bits: int) -> int:
    """Of the convolution `v` with weights of so many bits."""
    assert isinstance(v.op, Conv)
    shape, size = v.inputs[1].shape, v.inputs[1].type.size
    if bits > NARROW or v.op.groups > 1:
        return size
    if not has_groups(shape, v.type.size // v.shape[-1], bits):
        return -(-size // 2)
    return -(-size * bits // 8) + shape[0] * bytes_of_multipliers(size // shape[0])


@dataclass(frozen=True)
class Latencies:
    """Milliseconds of layers by name, one for each of `widths`, and of all others; `cpu` is None where they were modelled."""

    target: str
    cpu: str | None
    widths: tuple[int, ...]
    layers: Mapping[str, tuple[float, ...]]
    other: float = 0.0
    how: str = ""
    nbytes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    arena: int = 0

    def of(self, names: Sequence[str], widths: Sequence[int]) -> NDArray[np.float64]:
        """[names, widths]. UsageError where the table lacks one."""
        if missing := [n for n in names if n not in self.layers]:
            raise UsageError(f"the latency table of {self.target} lacks layer '{missing[0]}' ({len(missing)} in all); measure it again")
        if absent := [w for w in widths if w not in self.widths]:
            raise UsageError(f"the latency table of {self.target} has weights of {list(self.widths)} bits, but not of {absent}; measure it again")
        return np.array([[self.layers[n][self.widths.index(w)] for w in widths] for n in names], np.float64)

    def save(self, path: str | Path) -> None:
        """Write the table."""
        named = {"target": self.target, "cpu": self.cpu, "how": self.how, "widths": self.widths}
        table = {**named, "layers": dict(self.layers), "other": self.other, "bytes": dict(self.nbytes), "arena": self.arena}
        try:
            Path(path).write_text(json.dumps(table, indent=1), encoding="utf-8")
        except OSError as problem:
            raise UsageError(f"cannot write the latency table '{path}': {problem.strerror}; choose another place") from problem

    @classmethod
    def read(cls, path: str | Path) -> Latencies:
        """The table in a file. UsageError where it is none."""
        try:
            return _table(json.loads(Path(path).read_text(encoding="utf-8")))
        except OSError as problem:
            raise UsageError(f"cannot read the latency table '{path}': {problem.strerror}") from problem
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise UsageError(f"'{path}' is no latency table: expected JSON with target, cpu, widths and layers, found {problem!r}") from problem


def _table(t: dict[str, Any]) -> Latencies:
    layers = {name: tuple(map(float, row)) for name, row in t["layers"].items()}
    widths = tuple(map(int, t["widths"]))
    if odd := [name for name, row in layers.items() if len(row) != len(widths)]:
        raise ValueError(f"layer '{odd[0]}' with {len(layers[odd[0]])} latencies for {len(widths)} widths")
    nbytes = {name: tuple(map(int, row)) for name, row in t.get("bytes", {}).items()}
    return Latencies(str(t["target"]), t["cpu"], widths, layers, float(t.get("other", 0)), str(t.get("how", "")), nbytes, int(t.get("arena", 0)))
