"""The parallel entries: the same launches, cut into pieces that the caller's threads compute.

    int  <prefix>_run_parallel(inputs, outputs, arena, parallel_for, pool)
    void parallel_for(task, context, count, pool)      calls task(context, i) for every i < count, in any order, on any threads

Launches that are worth it become a task each; what is too short to divide is run by the caller, between them. What may run beside the
next task (the border of the buffer that it writes) is divided with it: it costs no turn, and each thread touches its own rows. Launches whose
pieces need nothing of each other's (`reach`) are one task: a depthwise convolution and the pointwise one behind it. The context is a struct on
the caller's stack: (inputs, outputs, arena). The call of `parallel_for` is the only indirect one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from llvmlite import ir

from .dsl import I32, I64, PTR, WHOLE, Kernel, Ptr
from .reach import Reach, follows

CONTEXT = ("inputs", "outputs", "arena")
PARALLEL = (*CONTEXT, "parallel_for", "pool")
TASK = ir.FunctionType(ir.VoidType(), [PTR, I32])
PARALLEL_FOR = ir.FunctionType(ir.VoidType(), [PTR, PTR, I32, PTR])

Emit = Callable[[Kernel, Sequence[Ptr], tuple[Any, Any]], None]
"""emit(k, (inputs, outputs, arena), (first, last)): the calls of one piece of work, of its part [first, last) of WHOLE."""
ALL = (ir.Constant(I64, 0), ir.Constant(I64, WHOLE))


@dataclass(frozen=True)
class Work:
    """Something to do in `pieces`; `beside`: it may be done while the next one is."""

    emit: Emit
    pieces: int
    beside: bool = False
    reach: Reach | None = None

    def follows(self, stage: Stage) -> bool:
        """Whether each piece may follow the same piece of `stage` at once. What alone is too short to divide is divided as that is."""
        if self.reach is None or self.pieces not in (1, stage.pieces):
            return False
        return all(w.reach is not None and follows(w.reach, self.reach, stage.pieces) for w in stage.works)


@dataclass(frozen=True)
class Stage:
    """Works between two waits: of several pieces all are independent of each other, of one they follow each other."""

    works: tuple[Work, ...]
    pieces: int = 1


def stages(works: Sequence[Work]) -> Iterator[Stage]:
    """What is divided, with what may run beside it; of the rest as much as comes together."""
    waiting, divided = list[Work](), None
    for w in works:
        if divided and not waiting and w.follows(divided):
            divided = Stage((*divided.works, w), divided.pieces)
        elif w.pieces > 1:
            if divided:
                yield divided
            beside = tuple(takewhile(lambda x: x.beside, reversed(waiting)))[::-1]
            if before := waiting[: len(waiting) - len(beside)]:
                yield Stage(tuple(before))
            divided, waiting = Stage((*beside, w), w.pieces), []
        else:
            waiting.append(w)
    if divided:
        yield divided
    if waiting:
        yield Stage(tuple(waiting))


def context_of(k: Kernel, inputs: Ptr, outputs: Ptr, arena: Ptr) -> Ptr:
    """The struct for tasks, on the stack."""
    context = Ptr(k, k.b.alloca(PTR, size=len(CONTEXT)))
    for i, p in enumerate((inputs, outputs, arena)):
        k.b.store(p.ir, (context + 8 * i).ir)
    return context


def emit_stages(k: Kernel, name: str, order: Iterable[Stage], context: Ptr, caller: tuple[Ptr, Ptr]) -> None:
    """Calls of all stages in `order`, those that are divided by `caller` = (parallel_for, pool)."""
    for n, stage in enumerate(order):
        if stage.pieces > 1:
            pieces = ir.Constant(I32, stage.pieces)
            task = _task(k, f"{name}_task_{n}", stage)
            call_through(k, caller[0].ir, PARALLEL_FOR, [address_of(k, task), context.ir, pieces, caller[1].ir])
        else:
            k.b.call(_together(k, f"{name}_part_{n}", stage.works), [context.ir])


@dataclass(frozen=True)
class _Pointed:
    """A pointer as the function that it points to."""

    pointer: Any
    function_type: Any
    type: Any = PTR

    def get_reference(self) -> str:
        return str(self.pointer.get_reference())


def call_through(k: Kernel, pointer: Any, kind: Any, arguments: Sequence[Any]) -> None:
    """Call the function of type `kind` at `pointer`."""
    k.b.call(_Pointed(pointer, kind), arguments)


def address_of(k: Kernel, function: Any) -> Any:
    """A function's address."""
    return k.b.bitcast(function, PTR)


def _task(k: Kernel, name: str, stage: Stage) -> Any:
    """void task(context, index): one piece."""
    t = Kernel(k.module, k.target, name, ("context",), numbers=(I32,))
    step = -(-WHOLE // stage.pieces)
    first = t.b.mul(t.b.zext(t.numbers[0], I64), ir.Constant(I64, step))
    for work in stage.works:
        work.emit(t, _loaded(t), (first, t.b.add(first, ir.Constant(I64, step))))
    return t.ret()


def _together(k: Kernel, name: str, works: Sequence[Work]) -> Any:
    """void part(context): all of several."""
    t = Kernel(k.module, k.target, name, ("context",))
    for work in works:
        work.emit(t, _loaded(t), ALL)
    return t.ret()


def _loaded(k: Kernel) -> list[Ptr]:
    return [Ptr(k, k.b.load((k.parameters[0] + 8 * i).ir, typ=PTR)) for i in range(len(CONTEXT))]
