"""Programs: batches, types, threads, and messages that name the input."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from toy_objects import INTERFACE, TOY, X, answer, answer_f32, compiled, rows

from qcompiler.backends.image import flatten
from qcompiler.runtime import InputError, Interface, MachineError, Program, Tensor
from qcompiler.runtime.arena import ALIGNMENT, ArenaPool, allocate
from qcompiler.runtime.cpu import machine_arch


def native(interface: Interface = INTERFACE, ir: str = TOY) -> Program:
    image = flatten(compiled(ir, machine_arch()))
    return Program.of_image(interface, image.data, image.entries)


@pytest.mark.parametrize("count", [1, 2, 17])
def test_a_larger_leading_batch_is_looped_over(count: int) -> None:
    x = rows(count)
    result = native().run_integer({"x": x})["y"]
    assert (result.shape, result.dtype) == ((count, 1), np.int8)
    assert np.array_equal(result, answer(x))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_real_numbers_of_any_width_are_taken(dtype: type) -> None:
    x = (rows(4) / 4.0).astype(dtype)
    result = native().run({"x": x})["y"]
    assert result.dtype == np.float32
    assert np.array_equal(result, answer_f32(x.astype(np.float32)))


def test_lists_and_views_are_taken() -> None:
    wide = rows(8).repeat(2, axis=1)
    assert np.array_equal(native().run_integer({"x": wide[::2, ::2]})["y"], answer(wide[::2, ::2]))
    assert np.array_equal(native().run({"x": [[0.5] * 8]})["y"], answer_f32(np.full((1, 8), 0.5)))


@pytest.mark.parametrize(
    "feeds, words",
    [
        ({}, "expected inputs 'x', found none"),
        ({"image": rows(1)}, "expected inputs 'x', found 'image'"),
        ({"x": rows(1), "z": 1}, "expected inputs 'x', found 'x', 'z'"),
        ({"x": rows(1)[0]}, r"input 'x': expected shape \(1, 8\) \(or a multiple of 1 in front\), found \(8,\)"),
        ({"x": rows(1)[:, :7]}, r"found \(1, 7\)"),
        ({"x": rows(0)}, r"found \(0, 8\)"),
        ({"x": rows(1).astype(np.uint8)}, "input 'x': expected int8, found uint8; quantize it"),
        ({"x": rows(1).astype(np.float32)}, "expected int8, found float32"),
    ],
)
def test_what_does_not_fit_is_named(feeds: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        native().run_integer(feeds)
    assert caught.value.exit_code == 2


def test_arrays_that_are_just_right_are_used_in_place_and_others_converted() -> None:
    x = rows(1).astype(np.int8)
    locked, strided = x.copy(), np.empty((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)[..., ::2]
    locked.flags.writeable, strided[...] = False, x
    results = [native().run_integer({"x": given})["y"] for given in (x, locked, strided, x[::-1])]
    assert all(np.array_equal(y, answer(x)) and y.shape == results[0].shape for y in results)
    assert all(y.flags.writeable and not np.shares_memory(y, x) for y in results)


def test_integers_are_not_taken_for_real_numbers() -> None:
    with pytest.raises(InputError, match=r"input 'x': expected float32, found uint8; convert it with .astype\('float32'\)"):
        native().run({"x": np.zeros((1, 8), np.uint8)})


class Recorder:
    """An executor that writes down what it is given."""

    def __init__(self) -> None:
        self.shapes: list[list[tuple[int, ...]]] = []

    def call(self, entry: str, inputs: list[np.ndarray], outputs: list[np.ndarray], arena: np.ndarray) -> None:
        self.shapes.append([a.shape for a in inputs])
        for output in outputs:
            output[...] = len(self.shapes)


def test_batches_of_several_inputs_go_together() -> None:
    interface = Interface("m", 0, 0, (Tensor("a", (2, 3)), Tensor("b", (1,))), (Tensor("y", (2,)), Tensor("s", ())))
    recorder = Recorder()
    program = Program(interface, recorder)
    result = program.run({"a": np.zeros((6, 3)), "b": np.zeros(3)})
    assert recorder.shapes == [[(2, 3), (1,)]] * 3
    assert result["y"].tolist() == [1, 1, 2, 2, 3, 3]
    assert result["s"].tolist() == [1, 2, 3]
    assert program.run({"a": np.zeros((2, 3)), "b": np.zeros(1)})["s"].shape == ()
    with pytest.raises(InputError, match=r"expected the same batch in every input, found 'a' \(4, 3\), 'b' \(3,\)"):
        program.run({"a": np.zeros((4, 3)), "b": np.zeros(3)})
    with pytest.raises(InputError, match=r"input 'a': expected shape \(2, 3\) \(or a multiple of 2 in front\), found \(3, 3\)"):
        program.run({"a": np.zeros((3, 3)), "b": np.zeros(1)})


def test_threads_share_a_program() -> None:
    """The toy works in its arena: two threads in one arena would read each other's inputs."""
    program = native()
    batches = [rows(300, seed) for seed in range(16)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda x: program.run_integer({"x": x})["y"], batches))
    assert all(np.array_equal(y, answer(x)) for x, y in zip(batches, results))


def test_arenas_are_lent_once_at_a_time_and_reused() -> None:
    pool = ArenaPool(100)
    with pool.lend() as a, pool.lend() as b:
        assert not np.shares_memory(a, b)
        assert a.nbytes == b.nbytes == 100
        assert a.ctypes.data % ALIGNMENT == b.ctypes.data % ALIGNMENT == 0
        first = {a.ctypes.data, b.ctypes.data}
    with pool.lend() as c:
        assert c.ctypes.data in first
    assert allocate(0).nbytes == 0


def test_an_arena_comes_back_after_an_error() -> None:
    program = native(ir=TOY.replace("ret i32 0", "ret i32 3", 1))
    for _ in range(3):
        with pytest.raises(MachineError, match="expected model_run to return 0, found 3"):
            program.run_integer({"x": rows(1)})
    assert len(program._arenas._free) == 1


def test_the_interface_is_told() -> None:
    program = native()
    assert program.inputs == (X,)
    assert (program.inputs[0].size, program.inputs[0].nbytes(integer=True), program.inputs[0].nbytes(integer=False)) == (8, 8, 32)
    assert program.outputs[0].scale == 0.5
