"""Which operators run as one kernel, in which order, and the reasons given where they do not."""

from __future__ import annotations

import pytest
from integer_graphs import Builder

from qcompiler.errors import UnsupportedModel
from qcompiler.ir.graph import Declined, Graph, apply
from qcompiler.ir.integer import Clamp, IntConv, IntSum, Lookup, Requantize
from qcompiler.ir.ops import Concat, Const, Dequantize, Input, MaxPool, Quantize, Reshape
from qcompiler.ir.types import Quantization, float_type, quantized
from qcompiler.passes.partition import Step, partition, peak_bytes, program_inputs, program_outputs


def kinds(step: Step) -> list[type]:
    return [type(v.op) for v in step.values]


def reasons(declined: Declined) -> str:
    return "; ".join(reason for _, reason in declined.reasons)


def test_a_convolution_takes_its_whole_chain():
    b = Builder()
    y = b.lookup(b.clamp(b.conv(b.input(1, 4, 4, 3), 4)))
    (step,) = partition(b.graph(y))
    assert kinds(step) == [IntConv, Requantize, Clamp, Lookup]
    assert step.result is y
    assert step.operands == (b.inputs[0],)
    assert step.residual is None


def test_a_residual_addition_joins_the_later_convolution():
    b = Builder()
    x = b.conv(b.input(1, 4, 4, 3), 4)
    y = b.clamp(b.conv(b.clamp(b.conv(x, 4)), 4))
    out = b.lookup(b.add(x, y))
    steps = partition(b.graph(out))
    assert [kinds(s) for s in steps] == [
        [IntConv, Requantize],
        [IntConv, Requantize, Clamp],
        [IntConv, Requantize, Clamp, IntSum, Requantize, Lookup],
    ]
    assert steps[2].residual is x
    assert steps[2].operands == (steps[1].result, x)


def test_the_shortcut_convolution_runs_before_the_addition():
    b = Builder()
    x = b.conv(b.input(1, 4, 4, 3), 4)
    shortcut, main = b.conv(x, 8), b.conv(b.conv(x, 8), 8)
    steps = partition(b.graph(b.add(main, shortcut)))
    assert steps[-1].residual in (main, shortcut)
    assert len(steps) == 4


def test_an_addition_chain_ends_at_the_second_addition():
    b = Builder()
    x = b.conv(b.input(1, 4, 4, 3), 4)
    steps = partition(b.graph(b.add(b.add(b.conv(x, 4), x), x)))
    assert [kinds(s)[0] for s in steps] == [IntConv, IntConv, IntSum]


@pytest.mark.parametrize("case", ["users", "constant", "broadcast", "output", "three", "self"])
def test_what_prevents_the_addition(case):
    b = Builder()
    x = b.input(1, 4, 4, 4)
    y = b.conv(x, 4)
    outputs = {
        "users": lambda: [b.add(y, x), b.max_pool(y, (2, 2))],
        "output": lambda: [b.add(y, x), y],
        "constant": lambda: [b.add(y, b.int8_const(1, 4, 4, 4))],
        "broadcast": lambda: [b.add(y, b.input(1, 1, 1, 4))],
        "three": lambda: [b.add(y, x, x)],
        "self": lambda: [b.add(y, y)],
    }[case]()
    declined = Declined()
    steps = partition(b.graph(*outputs), declined)
    assert [IntSum, Requantize] in [kinds(s) for s in steps]
    expected = {"users": "several users or is an output", "output": "or is an output", "constant": "is a constant", "broadcast": "operands broadcast"}
    assert expected.get(case, "") in reasons(declined)


def test_pointwise_operators_behind_movement_are_kernels_of_their_own():
    b = Builder()
    y = b.clamp(b.lookup(b.max_pool(b.input(1, 4, 4, 4), (2, 2))))
    assert [kinds(s) for s in partition(b.graph(y))] == [[MaxPool], [Lookup], [Clamp]]


def test_a_value_with_two_readers_is_stored_and_the_report_says_so():
    b, declined = Builder(), Declined()
    y = b.conv(b.input(1, 4, 4, 4), 4)
    steps = partition(b.graph(b.clamp(y), b.lookup(y)), declined)
    assert [kinds(s) for s in steps] == [[IntConv, Requantize], [Clamp], [Lookup]]
    assert reasons(declined).count(f"is not fused: {y.name} has several users") == 2


def test_an_accumulator_with_two_readers_is_computed_twice():
    b, declined = Builder(), Declined()
    acc = b.conv_acc(b.input(1, 4, 4, 4), 4)
    steps = partition(b.graph(b.requantize(acc, 1e4), b.requantize(acc, 1e5)), declined)
    assert [kinds(s) for s in steps] == [[IntConv, Requantize]] * 2
    assert "once for each" in reasons(declined)


def test_an_accumulator_cannot_be_an_output():
    b = Builder()
    with pytest.raises(UnsupportedModel, match="accumulator"):
        partition(b.graph(b.conv_acc(b.input(1, 4, 4, 4), 4)))


def test_the_boundary_of_the_program():
    q = Quantization.per_tensor(0.1, 3)
    x = apply(Input(float_type(1, 4)), name="x")
    unused = apply(Input(float_type(1, 4)), name="unused")
    entry = apply(Quantize(quantized((1, 4), q)), x, name="q")
    y = apply(Reshape((4,)), entry, name="y")
    graph = Graph((x, unused), (apply(Dequantize(), y, name="out"), y), ("out", "raw"))
    assert program_inputs(graph) == (entry,)
    assert program_outputs(graph) == (y, y)
    assert [s.result for s in partition(graph)] == [y]


def test_the_order_keeps_few_bytes_alive():
    """Two wide branches, each narrowed by a pool: breadth first would hold both wide values at once."""
    b = Builder()
    x = b.input(1, 8, 8, 2)
    wide = [b.conv(x, 64, zero_point=0) for _ in range(4)]
    narrow = [b.max_pool(w, (8, 8)) for w in wide]
    steps = partition(b.graph(b.concat(3, *narrow)))
    breadth_first = tuple(sorted(steps, key=lambda s: (isinstance(s.producer.op, Concat), isinstance(s.producer.op, MaxPool))))
    assert peak_bytes(steps, ()) < peak_bytes(breadth_first, ()) / 3


def test_steps_cover_each_value_once_and_come_after_their_operands():
    b = Builder()
    x = b.conv(b.input(1, 6, 6, 4), 4)
    for _ in range(3):
        x = b.clamp(b.add(b.conv(b.conv(x, 4), 4), x))
    graph = b.graph(b.max_pool(x, (2, 2)), x)
    steps = partition(graph)
    computed = [v for s in steps for v in s.values]
    assert len(computed) == len(set(computed)) == sum(not isinstance(v.op, (Const, Input)) for v in graph.order)
    done = set(b.inputs)
    for s in steps:
        assert set(s.operands) <= done
        done.add(s.result)


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (lambda b, y: [b.conv(y, 6)], "a kernel has one convolution; 64 bytes lie between it and"),
        (lambda b, y: [b.conv(y, 6, (3, 3))], "is no pointwise convolution"),
        (lambda b, y: [b.max_pool(y, (2, 2))], "is no pointwise convolution"),
        (lambda b, y: [b.conv(y, 6), b.conv(y, 5)], "has several users or is an output"),
        (lambda b, y: [y], "has several users or is an output"),
    ],
)
def test_depthwise_convolutions_say_why_they_stay_alone(after, expected: str) -> None:
    b, declined = Builder(), Declined()
    depthwise = b.conv(b.input(1, 4, 4, 4), 4, groups=4)
    partition(b.graph(*after(b, depthwise)), declined)
    assert [r for r in declined.reasons if "depthwise" in r[1]] == [
        (depthwise.inputs[0].name, next(r for _, r in declined.reasons if r.startswith("depthwise") and expected in r))
    ]


def test_kernels_without_an_epilogue_and_additions_without_a_convolution_are_named() -> None:
    b, declined = Builder(), Declined()
    x, y = b.max_pool(b.input(1, 4, 4, 4), (2, 2)), b.max_pool(b.input(1, 4, 4, 4), (2, 2))
    partition(b.graph(b.clamp(b.reshape(x, 36)), b.add(x, y), b.add(x, y, x)), declined)
    told = reasons(declined)
    assert "Clamp is not fused: Reshape " in told
    assert "no operand comes straight from a convolution" in told
    assert "it has 3 operands" in told
