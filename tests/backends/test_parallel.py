"""Programs divided among threads: the same bits for every number of threads and every order of the pieces, and the same proof."""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from shutil import which

import numpy as np
import pytest
from integer_graphs import Builder
from toy_objects import ARCHITECTURES, TOY, compiled

from qcompiler import runtime
from qcompiler.backends import emulate, reference
from qcompiler.backends.certificate import certify
from qcompiler.backends.image import flatten, lay_out
from qcompiler.backends.llvm import lower
from qcompiler.backends.llvm.kernels.conv import ConvConfig, split_axis
from qcompiler.backends.llvm.lower import ObjectCode, compile_object
from qcompiler.backends.llvm.split import pieces
from qcompiler.backends.llvm.target import TARGETS, Target
from qcompiler.backends.package import Artifact, write_artifact
from qcompiler.ir.graph import Graph
from qcompiler.ir.ops import Reduction
from qcompiler.runtime import apart
from qcompiler.runtime.arena import allocate
from qcompiler.runtime.workers import WorkerPool

HERE = [t for t in TARGETS.values() if t.runs_here]
BY_MEANING = [t.generic() for t in TARGETS.values() if not t.runs_here]
EMULATED = [t for t in TARGETS.values() if t.arch == "aarch64" and not t.runs_here and emulate.emulates(t.arch, t.features)]
THREADS = (1, 2, 3, 4)
Order = Callable[[int], list[int]]


def residual(b: Builder) -> Graph:
    """Convolutions of several kinds: strided, depthwise, pointwise, grouped, one row; halos, a residual, a pooling, a dense layer."""
    y = b.conv(b.input(1, 41, 37, 3), 40, (3, 3), strides=(2, 2), pads=((1, 1), (1, 1)))
    z = b.conv(b.depthwise(y, (3, 3), pads=((1, 1), (1, 1))), 40, (1, 1))
    grouped = b.conv(b.lookup(b.add(y, z)), 24, (3, 3), groups=2)
    pooled = b.max_pool(grouped, (2, 2), (2, 2))
    return b.graph(b.conv(pooled, 200, (9, 8)), b.sum_pool(pooled, (3, 3)))


def narrow(b: Builder) -> Graph:
    """Weights of four bits: a layer of many pixels, whose weights some targets take apart first, and one of a single pixel."""
    x = b.conv(b.input(1, 13, 11, 20), 70, (3, 3), pads=((1, 1), (1, 1)), reach=7)
    return b.graph(b.conv(b.conv(x, 36, reach=7), 130, (13, 11), reach=7))


def multiples(b: Builder) -> Graph:
    """Weights that are taken apart block by block: pieces of whole blocks, and pieces that share one."""
    x = b.conv(b.input(1, 13, 11, 32), 256, (3, 3), pads=((1, 1), (1, 1)), multiples=4)
    return b.graph(b.conv(b.conv(x, 20, multiples=4), 130, multiples=3))


def pointwise(b: Builder) -> Graph:
    """Element-wise operators, reductions, movement."""
    x, y = b.input(2, 9, 11, 20), b.input(2, 9, 11, 20)
    z = b.maximum(b.mul(x, y), b.clamp(y))
    moved = b.transpose(b.concat(3, z, b.add(x, z)), 0, 3, 1, 2)
    return b.graph(
        moved, b.reduce_sum(z, (1, 2)), b.reduce(Reduction.max, z, (3,)), b.argmax(z, 3), b.int_resize(z, 13, 17), b.nearest(x, 2, 18, 22, 20)
    )


def attention(b: Builder) -> Graph:
    """Products of activations, softmax, a gather."""
    q, k = b.input(3, 33, 16), b.input(3, 16, 29)
    p = b.softmax(b.matmul(q, k), 2)
    return b.graph(p, b.gather(p, 1, [5, 3, 3, 0]), b.lookup(q, per_channel=True))


def sequence(b: Builder) -> Graph:
    """Normalizations to and from 16 bits, rotary embedding, a cast."""
    x = b.input(2, 19, 40)
    wide = b.normalize(x, bits=16)
    rows = b.normalize(wide, centered=False)
    return b.graph(rows, b.rotate(b.reshape(rows, 2, 19, 5, 8), [4, 5, 6, 7, 0, 1, 2, 3]), b.cast(b.argmax(x, 2)))


def heads(b: Builder) -> Graph:
    """Attention, with working memory for each piece: divided by heads, and by windows."""
    q, k, v = (b.input(1, 70, 7, 8) for _ in range(3))
    windows = [b.input(9, 20, 3, 16) for _ in range(3)]
    return b.graph(b.attention(q, k, v, causal=True), b.attention(*windows, mask=b.clamp(b.input(9, 1, 1, 20, zero_point=0), 0, 1)))


def bands(b: Builder) -> Graph:
    """Depthwise and pointwise convolutions of which a thread goes from one to the next with its own rows."""
    y = b.depthwise(b.conv(b.input(1, 24, 40, 12), 36, (1, 1)), (3, 3), pads=((1, 1), (1, 1)))
    z = b.conv(y, 20, (1, 1))
    return b.graph(b.depthwise(b.conv(z, 70, (1, 1), reach=7), (3, 3), strides=(2, 2), pads=((1, 1), (1, 1))), z)


NETWORKS = {f.__name__: f for f in (bands, residual, narrow, multiples, pointwise, attention, sequence, heads)}


@cache
def network(name: str) -> tuple[Graph, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Graph, inputs, and what the reference makes of them."""
    b = Builder(7)
    graph = NETWORKS[name](b)
    feeds = b.feeds()
    return graph, feeds, reference.run(graph, feeds)


@pytest.fixture(scope="module", autouse=True)
def all_divided() -> Iterator[None]:
    """Everything that can be divided is, into an awkward number of pieces."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lower, "pieces", lambda units, _: max(1, min(units, 5)))
        yield


@cache
def code(name: str, target: Target) -> ObjectCode:
    return compile_object(network(name)[0], target)


def program(name: str, target: Target) -> runtime.Program:
    image = lay_out(code(name, target).object)  # by meaning, the float entry may want a function of libm
    return runtime.Program.of_image(code(name, target).interface, image.data, image.entries)


def check(name: str, found: dict[str, np.ndarray]) -> None:
    for key, expected in network(name)[2].items():
        assert np.array_equal(found[key], expected), key


def called(p: runtime.Program, name: str, call: Callable[..., None]) -> dict[str, np.ndarray]:
    """What a divided call computes; the arena holds garbage before."""
    feeds = network(name)[1]
    outputs = {t.name: np.zeros(t.shape, t.storage) for t in p.outputs}
    arena = allocate(p.interface.arena_size)
    arena[:] = 0xA5
    call([feeds[t.name] for t in p.inputs], list(outputs.values()), arena)
    return outputs


@pytest.mark.parametrize("target", HERE + BY_MEANING, ids=lambda t: t.name)
@pytest.mark.parametrize("name", NETWORKS)
def test_any_number_of_threads_gives_the_same_bits(name: str, target: Target) -> None:
    p = program(name, target)
    assert sum(n > 1 for n in code(name, target).pieces) > len(code(name, target).pieces) / 2
    for threads in THREADS:
        p.threads = threads
        assert p.threads == threads
        for _ in range(5):
            check(name, p.run_integer(network(name)[1]))
    p.threads = 1


@pytest.mark.parametrize("target", HERE + BY_MEANING, ids=lambda t: t.name)
def test_blocks_that_are_taken_apart_are_shared_by_pieces_and_not(target: Target) -> None:
    configs = [launch.config for launch in code("multiples", target).launches]
    assert {split_axis(c) for c in configs if isinstance(c, ConvConfig) and c.parts} == {"blocks", "all"}


Task = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)
ParallelFor = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
ORDERS: dict[str, Order] = {
    "reversed": lambda n: list(range(n))[::-1],
    "shuffled": lambda n: np.random.default_rng(n).permutation(n).tolist(),
    "all of it twice": lambda n: [*range(n), *range(n)],
}


@pytest.mark.parametrize("target", HERE, ids=lambda t: t.name)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", NETWORKS)
def test_any_order_of_the_pieces_gives_the_same_bits(name: str, order: str, target: Target) -> None:
    counts = []

    @ParallelFor
    def parallel_for(task: int, context: int, count: int, pool: int) -> None:
        assert pool == 12345
        counts.append(count)
        for i in ORDERS[order](count):
            Task(task)(context, i)

    p = program(name, target)
    address = ctypes.cast(parallel_for, ctypes.c_void_p).value
    assert isinstance(p.executor, runtime.NativeExecutor)
    assert address is not None
    check(name, called(p, name, p.executor.divided(p.interface.entry(True, parallel=True), address, 12345)))
    divided = [n for n in code(name, target).pieces if n > 1]
    assert len(counts) == len(tasks_of(code(name, target)))
    assert counts == divided[len(divided) - len(counts) :]
    assert (len(counts) < len(divided)) == (name == "bands")


@pytest.mark.parametrize("target", HERE, ids=lambda t: t.name)
@pytest.mark.parametrize("columns, channels", [(1, 8), (2, 8), (2, 40), (3, 8)])
def test_a_layer_of_a_single_tile_waits_for_all_rows(columns: int, channels: int, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its only piece is the first of two, and reads what the second piece of the layer before writes."""
    monkeypatch.setattr(lower, "pieces", lambda units, _: min(units, 2))
    b = Builder(3)
    graph = b.graph(b.conv(b.depthwise(b.input(1, 6, columns, 16), (3, 3), pads=((1, 1), (1, 1))), channels, (1, 1)))
    made, feeds = compile_object(graph, target), b.feeds()
    image = flatten(made.object)
    p = runtime.Program.of_image(made.interface, image.data, image.entries)

    @ParallelFor
    def parallel_for(task: int, context: int, count: int, _pool: int) -> None:
        for i in range(count):
            Task(task)(context, i)

    address = ctypes.cast(parallel_for, ctypes.c_void_p).value
    assert isinstance(p.executor, runtime.NativeExecutor)
    assert address is not None
    outputs = {t.name: np.zeros(t.shape, t.storage) for t in p.outputs}
    arena = allocate(made.interface.arena_size)
    arena[:] = 0xA5
    p.executor.divided("model_run_parallel", address, 0)([feeds[t.name] for t in p.inputs], list(outputs.values()), arena)
    for name, expected in reference.run(graph, feeds).items():
        assert np.array_equal(outputs[name], expected)


@pytest.mark.parametrize("target", HERE, ids=lambda t: t.name)
def test_a_piece_that_is_left_out_is_missed(target: Target) -> None:
    """The pieces are not the same work over and over."""

    @ParallelFor
    def parallel_for(task: int, context: int, count: int, _pool: int) -> None:
        for i in range(count - 1):
            Task(task)(context, i)

    p = program("residual", target)
    address = ctypes.cast(parallel_for, ctypes.c_void_p).value
    assert isinstance(p.executor, runtime.NativeExecutor)
    assert address is not None
    found = called(p, "residual", p.executor.divided("model_run_parallel", address, 0))
    assert not all(np.array_equal(found[k], v) for k, v in network("residual")[2].items())


REVERSED = """
define void @reversed(ptr %task, ptr %context, i32 %count, ptr %pool) {
entry:
  br label %loop
loop:
  %left = phi i32 [%count, %entry], [%next, %loop]
  %next = sub i32 %left, 1
  call void %task(ptr %context, i32 %next)
  %done = icmp eq i32 %next, 0
  br i1 %done, label %end, label %loop
end:
  ret void
}
"""


@pytest.mark.parametrize("target", EMULATED, ids=lambda t: t.name)
@pytest.mark.parametrize("name", NETWORKS)
def test_foreign_pieces_under_emulation(name: str, target: Target) -> None:
    """In order, by the pool's own function and its atomics, and backwards."""
    image = flatten(code(name, target).object)
    p = emulate.emulated(code(name, target).interface, image, target.features)
    executor = p.executor
    assert isinstance(executor, emulate.UnicornExecutor)
    check(name, called(p, name, executor.divided("model_run_parallel", executor.address("model_pool_for"))))
    backwards, place = flatten(compiled(REVERSED, target.arch)), emulate.POOL + (1 << 20)
    executor._cpu.mem_map(place, len(backwards.data))
    executor._cpu.mem_write(place, bytes(backwards.data))
    check(name, called(p, name, executor.divided("model_run_parallel", place + backwards.entries["reversed"])))


@pytest.mark.parametrize("target", HERE[-1:], ids=lambda t: t.name)
def test_the_float_entry_is_divided_too(target: Target) -> None:
    p = program("residual", target)
    x = p.inputs[0]
    real = np.float32(x.scale) * (network("residual")[1][x.name].astype(np.float32) - x.zero_point)
    alone = p.run({x.name: real})
    p.threads = 2
    together = p.run({x.name: real})
    p.threads = 1
    assert all(np.array_equal(alone[k], together[k]) for k in alone)


# --- threads -----------------------------------------------------------------------------------------------------------


def test_calls_from_several_threads_overlap() -> None:
    p = program("residual", HERE[-1])
    p.threads = 2
    wrong = list[str]()

    def many() -> None:
        for _ in range(50):
            try:
                check("residual", p.run_integer(network("residual")[1]))
            except AssertionError as problem:
                wrong.append(str(problem))

    callers = [threading.Thread(target=many) for _ in range(3)]
    for c in callers:
        c.start()
    for c in callers:
        c.join()
    p.threads = 1
    assert wrong == []


def test_an_idle_program_uses_no_time() -> None:
    p = program("residual", HERE[-1])
    p.threads = 3
    p.run_integer(network("residual")[1])
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.1
    check("residual", p.run_integer(network("residual")[1]))
    p.threads = 1


def test_workers_end_with_their_program() -> None:
    def workers() -> int:
        return sum(t.name == "qcompiler worker" for t in threading.enumerate())

    before = workers()
    p = program("residual", HERE[-1])
    p.threads = 4
    p.run_integer(network("residual")[1])
    assert workers() == before + 3
    p.threads = 2
    assert workers() == before + 1
    del p
    assert workers() == before


def test_short_layers_call_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lower, "pieces", pieces)
    target, b = HERE[-1], Builder(3)
    short = compile_object(b.graph(b.conv(b.input(1, 2, 2, 3), 8, (1, 1))), target)
    assert not short.interface.divided
    assert code("residual", target).interface.divided
    p = runtime.Program.of_image(short.interface, flatten(short.object).data, flatten(short.object).entries, threads=2)
    monkeypatch.setattr(WorkerPool, "claim", lambda _: pytest.fail("workers were woken for nothing"))
    p.run_integer(b.feeds())


@pytest.mark.skipif(apart._cpu_number() is None or len(os.sched_getaffinity(0)) < 2, reason="one core, or a system that does not say which")
def test_workers_stay_off_the_core_of_their_caller() -> None:
    allowed = os.sched_getaffinity(0)
    p = program("residual", HERE[-1])
    try:
        for cpu in sorted(allowed)[:2]:
            os.sched_setaffinity(0, allowed)
            p.threads = 2  # born with the mask of its caller
            worker = next(t.native_id for t in threading.enumerate() if t.name == "qcompiler worker" and t.native_id)
            moved = apart.Apart([worker])
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(moved, "_cpu", lambda cpu=cpu: cpu)
                moved.keep()
            assert os.sched_getaffinity(worker) == allowed - {cpu}
            assert os.sched_getaffinity(0) == allowed
            os.sched_setaffinity(0, {cpu})
            moved.keep()  # no other core is left
            assert os.sched_getaffinity(worker) == allowed - {cpu}
            check("residual", p.run_integer(network("residual")[1]))
            p.threads = 1
    finally:
        os.sched_setaffinity(0, allowed)
        p.threads = 1


def test_threads_are_checked() -> None:
    with pytest.raises(runtime.InputError, match="at least one thread"):
        program("residual", HERE[-1]).threads = 0


def test_artifacts_are_loaded_with_threads(tmp_path: Path) -> None:
    made = code("residual", HERE[-1])
    for share in (True, False):
        write_artifact(tmp_path / "model", Artifact.of_elf(made.object, made.interface, made.target), share)
        p = runtime.load(tmp_path / "model", threads=2)
        assert p.threads == 2
        check("residual", p.run_integer(network("residual")[1]))


APP = """
#include <pthread.h>
#include <stdio.h>
#include "model.h"
static _Alignas(64) unsigned char arena[MODEL_ARENA_SIZE], pool[MODEL_POOL_SIZE];
static signed char input[MODEL_INPUT_0_SIZE], out0[MODEL_OUTPUT_0_SIZE], out1[MODEL_OUTPUT_1_SIZE];
static void *worker(void *p) { while (model_pool_worker(p, 10)) {} return 0; }
static void one_by_one(model_task task, void *context, int count, void *data) {
    while (count--) { task(context, count); ++*(int *)data; }
}
int main(void) {
    const void *inputs[] = {input};
    void *outputs[] = {out0, out1};
    pthread_t thread;
    int tasks = 0, i;
    if (fread(input, 1, sizeof input, stdin) != sizeof input || pthread_create(&thread, 0, worker, pool)) return 2;
    for (i = 0; i < 20; i++) model_run_parallel(inputs, outputs, arena, model_pool_for, pool);
    fwrite(out0, 1, sizeof out0, stdout), fwrite(out1, 1, sizeof out1, stdout);
    model_run_parallel(inputs, outputs, arena, one_by_one, &tasks);
    fwrite(out0, 1, sizeof out0, stdout), fwrite(out1, 1, sizeof out1, stdout);
    model_pool_set(pool, MODEL_POOL_STOP);
    return pthread_join(thread, 0) || !tasks;
}
"""


@pytest.mark.skipif(which("cc") is None, reason="no C compiler")
def test_an_application_brings_its_threads(tmp_path: Path) -> None:
    made = code("residual", HERE[-1])
    write_artifact(tmp_path / "model", Artifact.of_elf(made.object, made.interface, made.target), share=False)
    (tmp_path / "app.c").write_text(APP, encoding="ascii")
    command = ["cc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-pthread", "-Imodel", "app.c", "model/model.a", "-o", "app"]
    subprocess.run(command, cwd=tmp_path, check=True)
    (x,) = network("residual")[1].values()
    done = subprocess.run([tmp_path / "app"], input=x.tobytes(), capture_output=True, check=True, timeout=60)
    assert done.stdout == b"".join(v.tobytes() for v in network("residual")[2].values()) * 2


# --- the proof ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda t: t.name)
def test_the_parallel_entry_is_certified_with_its_tasks(target: Target) -> None:
    made = code("residual", target)
    certificate = certify(made.object, "model_run_parallel", callback=True)
    assert certificate.ok, "; ".join(map(str, certificate.findings[:5]))
    assert len(tasks_of(made)) == sum(n > 1 for n in made.pieces)
    assert not certify(made.object, "model_run_parallel").ok
    assert certify(made.object, "model_run").ok
    floats = certify(made.object, "model_run_f32_parallel", callback=True)
    assert {f.function for f in floats.findings} & {"model_quantize", "model_dequantize"}


@pytest.mark.parametrize("name, merged", [("bands", True), ("attention", False)])
@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda t: t.name)
def test_what_reads_its_own_rows_alone_is_the_same_task(name: str, merged: bool, target: Target) -> None:
    made = code(name, target)
    assert (len(tasks_of(made)) < sum(n > 1 for n in made.pieces)) == merged


def tasks_of(made: ObjectCode) -> list[str]:
    return [f for f in certify(made.object, "model_run_parallel", callback=True).functions if "_task_" in f]


HANDED_OUT = """
define internal void @task(ptr %context, i32 %index) {
  %v = load float, ptr %context
  %w = fmul float %v, %v
  store float %w, ptr %context
  ret void
}
define i32 @handed(ptr %a, ptr %b, ptr %c, ptr %for, ptr %pool) {
  call void %for(ptr @task, ptr %a, i32 3, ptr %pool)
  ret i32 0
}
define i32 @other(ptr %a, ptr %b, ptr %c, ptr %for, ptr %pool) {
  %f = load ptr, ptr %c
  call void %f(ptr %b)
  call void %for(ptr %a, ptr %a, i32 3, ptr %pool)
  ret i32 0
}
define internal void @deep(ptr %f) noinline {
  call void %f()
  store volatile i32 1, ptr %f
  ret void
}
define i32 @below(ptr %a, ptr %b, ptr %c, ptr %for, ptr %pool) {
  call void @deep(ptr %for)
  ret i32 0
}
"""


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(
    "entry, function, words",
    [("handed", "task", "is not on the list"), ("other", "other", "not the callback's"), ("below", "deep", "goes to a computed address")],
)
def test_what_a_callback_must_not_hide_is_found(arch: str, entry: str, function: str, words: str) -> None:
    certificate = certify(compiled(TOY + HANDED_OUT, arch), entry, callback=True)
    assert [f for f in certificate.findings if f.function == function and words in f.why], certificate.findings
