"""What one action of the memory plan becomes: a call of a kernel function with addresses and constants.

A planner (one per operator, in `kernels/`) turns a `plan_memory.Run` into `Launch`es:

    def plan_pool(run: Run, target: Target) -> Iterable[Launch]

`emit(k, config)` writes the function's body into `k`, whose `k.parameters` are pointers named `parameters`; `config` is frozen and hashable and holds
all that the code depends on. Launches with equal (emit, config) share one function. Arguments are addresses in the program's
buffers, or `Data` placed in read-only memory (aligned to 64, equal contents once). `Nothing` is for a parameter that is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qcompiler.passes.layouts import Buffer, Layout
from qcompiler.passes.plan_memory import Run

from .dsl import Kernel
from .target import Target

if TYPE_CHECKING:
    from .reach import Reach


@dataclass(frozen=True)
class Address:
    """A place in the arena, or in an input or output of the program."""

    buffer: Buffer
    offset: int

    @classmethod
    def of(cls, layout: Layout, offset: int = 0) -> Address:
        """Element 0 of `layout`, moved by `offset` bytes."""
        return cls(layout.buffer, layout.offset + offset)


@dataclass(frozen=True)
class Data:
    """Constant bytes: packed weights, constants of epilogues, tables."""

    content: bytes


@dataclass(frozen=True)
class Nothing:
    """No argument: the kernel does not touch this parameter."""


Argument = Address | Data | Nothing


@dataclass(frozen=True)
class Launch:
    """One call of a kernel."""

    emit: Callable[[Kernel, Any], None]
    config: Hashable
    parameters: tuple[str, ...]
    arguments: tuple[Argument, ...]
    label: str
    """Name of the value that it computes, for reports and profiles."""
    reach: Reach | None = None
    """What its pieces touch, where that is known."""


Planner = Callable[[Run, Target], Iterable[Launch]]
