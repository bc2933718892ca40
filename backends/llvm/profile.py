"""The profiling build: the same program with a time stamp before and after every kernel, written to one more output.

The output `STAMPS` has one integer per launch and one more: what the CPU's counter read before the first launch and after each. It counts
at a fixed rate that has nothing to do with the clock of the core; `qcompiler.profile` measures it. The product has none of this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from qcompiler.ir.graph import Graph
from qcompiler.passes.layouts import Buffer, Space
from qcompiler.passes.partition import Step, partition
from qcompiler.passes.plan_memory import Plan
from qcompiler.runtime.artifact import Tensor

from .dsl import I64, Kernel, Ptr
from .launch import Launch
from .lower import Linker, ObjectCode
from .target import Target

STAMPS = "time stamps"


def compile_profiled(graph: Graph, target: Target, prefix: str = "model", steps: Sequence[Step] | None = None) -> ObjectCode:
    """As `compile_object`, with the additional output `STAMPS`."""
    return _Stamping(target, prefix).link(graph, partition(graph) if steps is None else steps)


class _Stamping(Linker):
    """Puts time stamps around calls."""

    _written = 0
    _place: Buffer

    def _outputs(self, plan: Plan, graph: Graph, launches: Sequence[Launch]) -> tuple[Tensor, ...]:
        outputs = super()._outputs(plan, graph, launches)
        self._place = Buffer(Space.output, len(outputs))
        return (*outputs, Tensor(STAMPS, (len(launches) + 1,), "int64", "int64"))

    def _call(self, k: Kernel, launch: Launch, function: Any, bases: dict[Buffer, Ptr]) -> None:
        if self._written == 0:
            self._stamp(k, bases)
        super()._call(k, launch, function, bases)
        self._stamp(k, bases)

    def _stamp(self, k: Kernel, bases: dict[Buffer, Ptr]) -> None:
        k.b.store(_counter(k), (bases[self._place] + 8 * self._written).ir, align=8)
        self._written += 1


def _counter(k: Kernel) -> Any:
    """rdtsc or cntvct_el0: both may be read by programs, and count at a fixed rate."""
    if k.target.arch == "aarch64":
        kind = ir.FunctionType(I64, [ir.MetaDataType()])
        return k.b.call(_declared(k, "llvm.read_volatile_register.i64", kind), [k.module.add_metadata(["cntvct_el0"])])
    return k.b.call(_declared(k, "llvm.readcyclecounter", ir.FunctionType(I64, [])), [])


def _declared(k: Kernel, name: str, kind: Any) -> Any:
    return k.module.globals.get(name) or ir.Function(k.module, kind, name)
