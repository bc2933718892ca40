"""A pool of threads without a library: plain atomics on 192 bytes that the threads share.

    void <prefix>_pool_for(task, context, count, pool)     a `parallel_for`: publishes a job, works on it too, waits for its last piece
    int  <prefix>_pool_worker(pool, spins)                 what the other threads run: takes pieces of jobs
    void <prefix>_pool_set(pool, state)                    IDLE (as zeroed memory is), BUSY or STOP

A job is one 64-bit word, `epoch << 32 | end << 16 | next`: pieces [next, end) are left. The publisher takes them from the front, workers
from the back, with a compare-and-swap that fails where another was faster or the job is another one by now. So in job after job a thread meets about
the same part of the pieces, and where consecutive layers are divided alike it reads what it wrote itself: what the other core wrote is
three to four times farther away than its own second-level cache.
Task and context, read before, belong to the piece that was taken; they change only after all pieces of a job are done, which the
publisher waits for. It does whatever nobody takes: with no worker at all a job is a loop. One job at a time: a pool belongs to one caller.

Who has nothing to do spins, and after some ten microseconds calls the function at `YIELD` (void f(void); null: none), by which the owner of the pool
lets it give up its core: where there are more threads than cores, the one that is waited for may be waiting for this one.
While the pool is IDLE a worker returns 1 after `spins` such rounds, to sleep until it is called again; while it is BUSY (a program
runs) it goes on; at STOP it returns 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from llvmlite.ir.instructions import StoreAtomicInstr

from .dsl import I32, I64, PTR, Kernel, Ptr
from .parallel import TASK, call_through
from .target import Target, host_arch

JOB, TASK_AT, CONTEXT_AT, DONE, STATE, YIELD = 0, 8, 16, 64, 128, 136
SIZE = 192
STOP, BUSY = 2, 1
CALLER_PATIENCE, WORKER_PATIENCE = 1024, 4096
"""Pauses before giving up the core: some ten microseconds for who waits for the last piece, more than most gaps between jobs for workers."""
FIELD = (1 << 16) - 1


def emit_pool(module: Any, target: Target, prefix: str) -> None:
    """The three functions."""
    _emit_for(Kernel(module, target, f"{prefix}_pool_for", ("task", "context"), internal=False, numbers=(I32, PTR)))
    _emit_worker(Kernel(module, target, f"{prefix}_pool_worker", ("pool",), I32, internal=False, numbers=(I32,)))
    k = Kernel(module, target, f"{prefix}_pool_set", ("pool",), internal=False, numbers=(I32,))
    _put(k, k.parameters[0] + STATE, k.numbers[0])
    k.ret()


def _emit_for(k: Kernel) -> None:
    (task, context), (count, pointer) = k.parameters, k.numbers
    pool, wide = Ptr(k, pointer), k.b.zext(count, I64)
    _put(k, pool + TASK_AT, k.b.ptrtoint(task.ir, I64))
    _put(k, pool + CONTEXT_AT, k.b.ptrtoint(context.ir, I64))
    _put(k, pool + DONE, ir.Constant(I32, 0))
    epoch = k.b.add(k.b.lshr(_get(k, pool + JOB, I64), k.i64(32)), k.i64(1))
    _put(k, pool + JOB, k.b.or_(k.b.shl(epoch, k.i64(32)), k.b.shl(wide, k.i64(16))))
    with _forever(k) as (again, leave):
        job = _get(k, pool + JOB, I64)
        with _when(k, _piece_left(k, job)):
            _take(k, pool, job, again, from_back=False)
        k.b.branch(leave)
    with _forever(k) as (again, leave):
        finished = k.b.icmp_unsigned("==", _get(k, pool + DONE, I32), count)
        resting = k.function.append_basic_block("resting")
        k.b.cbranch(finished, leave, resting)
        k.b.position_at_end(resting)
        _rest(k, pool, CALLER_PATIENCE)
        k.b.branch(again)
    k.ret()


def _emit_worker(k: Kernel) -> None:
    (pool,), (spins,) = k.parameters, k.numbers
    start, search = k.b.block, k.function.append_basic_block("search")
    found, nothing, stopped, tired, onward = (k.function.append_basic_block(n) for n in ("found", "nothing", "stopped", "tired", "onward"))
    k.b.branch(search)
    k.b.position_at_end(search)
    idle = k.b.phi(I32)
    idle.add_incoming(ir.Constant(I32, 0), start)
    job = _get(k, pool + JOB, I64)
    k.b.cbranch(_piece_left(k, job), found, nothing)
    k.b.position_at_end(found)
    again = k.function.append_basic_block("again")
    _take(k, pool, job, again, from_back=True)
    k.b.position_at_end(again)
    idle.add_incoming(ir.Constant(I32, 0), again)
    k.b.branch(search)
    k.b.position_at_end(nothing)
    _rest(k, pool, WORKER_PATIENCE)
    state = _get(k, pool + STATE, I32)
    k.b.cbranch(k.b.icmp_unsigned("==", state, ir.Constant(I32, STOP)), stopped, onward)
    k.b.position_at_end(stopped)
    k.b.ret(ir.Constant(I32, 0))
    k.b.position_at_end(onward)
    more = k.b.select(k.b.icmp_unsigned("==", state, ir.Constant(I32, BUSY)), ir.Constant(I32, 0), k.b.add(idle, ir.Constant(I32, 1)))
    idle.add_incoming(more, onward)
    k.b.cbranch(k.b.icmp_unsigned("<", more, spins), search, tired)
    k.b.position_at_end(tired)
    k.ret(1)


def _bounds(k: Kernel, job: Any) -> tuple[Any, Any]:
    """Of the pieces that are left."""
    return k.b.and_(job, k.i64(FIELD)), k.b.and_(k.b.lshr(job, k.i64(16)), k.i64(FIELD))


def _piece_left(k: Kernel, job: Any) -> Any:
    first, end = _bounds(k, job)
    return k.b.icmp_unsigned("<", first, end)


def _take(k: Kernel, pool: Ptr, job: Any, again: Any, from_back: bool) -> None:
    """Take a piece of `job`, do it, and go to `again`; there too if another thread was faster."""
    task = k.b.inttoptr(_get(k, pool + TASK_AT, I64), PTR)
    context = k.b.inttoptr(_get(k, pool + CONTEXT_AT, I64), PTR)
    first, end = _bounds(k, job)
    piece, rest = (k.b.sub(end, k.i64(1)), k.b.sub(job, k.i64(1 << 16))) if from_back else (first, k.b.add(job, k.i64(1)))
    taken = k.b.cmpxchg((pool + JOB).ir, job, rest, "acq_rel", "acquire")
    mine = k.function.append_basic_block("mine")
    k.b.cbranch(k.b.extract_value(taken, 1), mine, again)
    k.b.position_at_end(mine)
    call_through(k, task, TASK, [context, k.b.trunc(piece, I32)])
    k.b.atomic_rmw("add", (pool + DONE).ir, ir.Constant(I32, 1), "release")
    k.b.branch(again)


@contextmanager
def _forever(k: Kernel) -> Iterator[tuple[Any, Any]]:
    """A loop: the block that repeats it, and the one behind it, where code goes on."""
    again, leave = k.function.append_basic_block("again"), k.function.append_basic_block("leave")
    k.b.branch(again)
    k.b.position_at_end(again)
    yield again, leave
    k.b.position_at_end(leave)


@contextmanager
def _when(k: Kernel, condition: Any) -> Iterator[None]:
    """Code that must end in a branch."""
    then, otherwise = k.function.append_basic_block("then"), k.function.append_basic_block("otherwise")
    k.b.cbranch(condition, then, otherwise)
    k.b.position_at_end(then)
    yield
    k.b.position_at_end(otherwise)


def _get(k: Kernel, p: Ptr, kind: Any) -> Any:
    return k.b.load_atomic(p.ir, "acquire", kind.width // 8, typ=kind)


def _put(k: Kernel, p: Ptr, value: Any) -> None:
    """Release; llvmlite's own `store_atomic` knows typed pointers only."""
    k.b._insert(StoreAtomicInstr(k.b.block, value, p.ir, "release", value.type.width // 8))


def _rest(k: Kernel, pool: Ptr, patience: int) -> None:
    """Some pauses while nothing changes, or else give up the core."""
    job, done = _get(k, pool + JOB, I64), _get(k, pool + DONE, I32)
    before, spin, following, tired, out = (k.b.block, *(k.function.append_basic_block(n) for n in ("spin", "following", "tired", "rested")))
    k.b.branch(spin)
    k.b.position_at_end(spin)
    round_ = k.b.phi(I32)
    round_.add_incoming(ir.Constant(I32, 0), before)
    _pause(k)
    same = k.b.and_(
        k.b.icmp_unsigned("==", job, _get(k, pool + JOB, I64)),
        k.b.icmp_unsigned("==", done, _get(k, pool + DONE, I32)),
    )
    k.b.cbranch(same, following, out)
    k.b.position_at_end(following)
    more = k.b.add(round_, ir.Constant(I32, 1))
    round_.add_incoming(more, following)
    k.b.cbranch(k.b.icmp_unsigned("<", more, ir.Constant(I32, patience)), spin, tired)
    k.b.position_at_end(tired)
    give_up = _get(k, pool + YIELD, I64)
    calling = k.function.append_basic_block("give_up")
    k.b.cbranch(k.b.icmp_unsigned("!=", give_up, k.i64(0)), calling, out)
    k.b.position_at_end(calling)
    call_through(k, k.b.inttoptr(give_up, PTR), ir.FunctionType(ir.VoidType(), []), [])
    k.b.branch(out)
    k.b.position_at_end(out)


PAUSES: dict[str, tuple[str, Callable[[], list[Any]]]] = {
    "x86_64": ("llvm.x86.sse2.pause", list),
    "aarch64": ("llvm.aarch64.isb", lambda: [ir.Constant(I32, 15)]),  # yield does nothing on most cores
}


def _pause(k: Kernel) -> None:
    """Leave the core to its other thread for a moment."""
    name, arguments = PAUSES[host_arch() if k.target.by_meaning else k.target.arch]
    given = arguments()
    function = k.module.globals.get(name) or ir.Function(k.module, ir.FunctionType(ir.VoidType(), [a.type for a in given]), name)
    k.b.call(function, given)
