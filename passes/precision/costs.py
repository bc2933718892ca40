"""What a layer costs in each width: bytes of its weights, and milliseconds where they were measured or modelled.

Weights of at most four bits lie two in a byte, all others, and those of depthwise convolutions, one in a byte.
A latency table is a JSON file, so that other tools can read and write it:

    {"target": "...", "cpu": "...", "widths": [8, 4], "layers": {"conv1": [0.12, 0.09], ...}}        milliseconds, one thread
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import UsageError
from qcompiler.ir.graph import Value
from qcompiler.ir.ops import Conv

NIBBLE = 4


def weight_bytes(v: Value, bits: int) -> int:
    """Of the convolution `v` with weights of so many bits."""
    assert isinstance(v.op, Conv)
    size = v.inputs[1].type.size
    return -(-size // 2) if bits <= NIBBLE and v.op.groups == 1 else size


@dataclass(frozen=True)
class Latencies:
    """Milliseconds of layers by name, one for each of `widths`; `cpu` is None where they were modelled."""

    target: str
    cpu: str | None
    widths: tuple[int, ...]
    layers: Mapping[str, tuple[float, ...]]

    def of(self, names: Sequence[str], widths: Sequence[int]) -> NDArray[np.float64]:
        """[names, widths]. UsageError where the table lacks one."""
        if missing := [n for n in names if n not in self.layers]:
            raise UsageError(f"the latency table of {self.target} lacks layer '{missing[0]}' ({len(missing)} in all); measure it again")
        if absent := [w for w in widths if w not in self.widths]:
            raise UsageError(f"the latency table of {self.target} has weights of {list(self.widths)} bits, but not of {absent}; measure it again")
        return np.array([[self.layers[n][self.widths.index(w)] for w in widths] for n in names], np.float64)

    def save(self, path: str | Path) -> None:
        """Write the table."""
        rows = {name: list(row) for name, row in self.layers.items()}
        table = {"target": self.target, "cpu": self.cpu, "widths": list(self.widths), "layers": rows}
        Path(path).write_text(json.dumps(table, indent=1), encoding="utf-8")

    @classmethod
    def read(cls, path: str | Path) -> Latencies:
        """The table in a file. UsageError where it is none."""
        try:
            t = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(str(t["target"]), t["cpu"], tuple(map(int, t["widths"])), {k: tuple(map(float, r)) for k, r in t["layers"].items()})
        except OSError as problem:
            raise UsageError(f"cannot read the latency table '{path}': {problem.strerror}") from problem
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise UsageError(f"'{path}' is no latency table: expected JSON with target, cpu, widths and layers, found {problem!r}") from problem
