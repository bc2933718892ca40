"""The memory plan: executed over real bytes it gives the reference's results, and it moves no more bytes than it must."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from integer_graphs import Builder
from memory_model import MemoryModel
from random_graphs import random_graphs

from qcompiler.backends import reference
from qcompiler.ir.graph import Value
from qcompiler.ir.ops import PadMode
from qcompiler.passes.arena import ALIGNMENT, Block, arena_size, live_bytes, place
from qcompiler.passes.layouts import Space, dense_strides, reshaped_strides
from qcompiler.passes.partition import partition
from qcompiler.passes.plan_memory import Copy, Fill, Plan, Run, plan_memory

SAME = ((1, 1), (1, 1))


def check(b: Builder, *outputs: Value) -> Plan:
    """The plan of the graph with these outputs, after executing it against the reference."""
    graph = b.graph(*outputs)
    plan = plan_memory(graph, partition(graph))
    feeds = b.feeds()
    expected = reference.run(graph, feeds)
    for ordered in (plan, late(plan)):
        for name, got in zip(graph.output_names, MemoryModel(ordered, feeds).run(), strict=True):
            np.testing.assert_array_equal(got, expected[name])
    assert_sound(plan)
    return plan


def late(plan: Plan) -> Plan:
    """The same with every action that may run beside those behind it after them."""
    actions, waiting = [], []
    for action, beside in zip(plan.actions, plan.beside, strict=True):
        waiting.append(action)
        if not beside:
            actions += waiting[::-1]
            waiting = []
    assert not waiting
    return replace(plan, actions=tuple(actions))


def assert_sound(plan: Plan) -> None:
    for a, b in itertools.combinations(plan.blocks, 2):
        assert not a.meets(b) or a.end <= b.offset or b.end <= a.offset, f"{a} and {b} overlap"
    assert all(b.offset % ALIGNMENT == 0 for b in plan.blocks)
    assert live_bytes(plan.blocks) <= plan.arena_size <= 1.25 * live_bytes(plan.blocks)


def copies(plan: Plan) -> list[Copy]:
    return [a for a in plan.actions if isinstance(a, Copy)]


def runs(plan: Plan) -> list[Run]:
    return [a for a in plan.actions if isinstance(a, Run)]


def test_transposed_input_is_written_into_the_halo():
    b = Builder()
    x = b.transpose(b.input(1, 3, 8, 8), 0, 2, 3, 1)
    plan = check(b, b.conv(x, 4, (3, 3), pads=SAME))
    assert len(copies(plan)) == 1
    assert plan.layouts[x].strides == (300, 30, 3, 1)
    assert plan.layouts[x].offset % ALIGNMENT == 33
    assert len(plan.fills) == 3
    assert plan.beside == (True, True, True, False, False)


def test_a_border_that_the_next_kernel_reads_is_there_before_it():
    b = Builder()
    x = b.max_pool(b.input(1, 8, 8, 3), (2, 2), (2, 2))
    plan = check(b, b.max_pool(b.pad(x, (0, 0), (1, 1), (1, 1), (0, 0)), (3, 3), (1, 1)))
    assert [type(a) for a in plan.actions] == [Run, Fill, Fill, Fill, Fill, Run]
    assert plan.beside == (False, True, True, True, False, False)


@pytest.mark.parametrize("large", [True, False])
def test_what_a_depthwise_layer_reads_outlives_the_pointwise_ones_where_there_is_room(large: bool):
    """Beside a greater layer it takes no more memory, and a thread need not wait; where it would, memory is used again."""
    b = Builder()
    x = b.input(1, 16, 16, 8)
    x = b.conv(b.conv(x, 96), 8) if large else x
    y = b.conv(x, 32)
    z = b.depthwise(y, (3, 3), pads=SAME)
    plan = check(b, b.conv(b.conv(z, 16), 8))
    written = {a.step.result: n for n, a in enumerate(plan.actions) if isinstance(a, Run)}
    block = next(i for i in plan.blocks if i.name == y.name)
    assert block.last == written[z] + (2 if large else 0)


def test_halo_is_the_greatest_of_all_pads():
    b = Builder()
    x = b.conv(b.transpose(b.input(1, 2, 8, 8), 0, 2, 3, 1), 4)
    plan = check(b, b.conv(x, 4, (3, 3), strides=(2, 2), pads=SAME), b.conv(x, 4, (5, 1), pads=((2, 2), (0, 0))))
    assert plan.layouts[x].strides[1] == 4 * (1 + 8 + 1), "as with stride 1, though stride 2 over 8 columns reads none of the right border"
    assert plan.layouts[x].offset % ALIGNMENT == (2 * 40 + 4) % ALIGNMENT


def test_concat_of_convolutions_moves_nothing_and_shares_the_halo():
    b = Builder()
    x = b.transpose(b.input(1, 3, 6, 6), 0, 2, 3, 1)
    parts = [b.conv(x, c, zero_point=3) for c in (4, 8, 5)]
    joined = b.concat(3, *parts)
    inner = b.conv(parts[1], 4, (3, 3), pads=SAME)
    plan = check(b, b.conv(joined, 4, (3, 3), pads=SAME), inner)
    assert len(copies(plan)) == 1
    assert [plan.layouts[p].offset - plan.layouts[joined].offset for p in parts] == [0, 4, 12]
    assert len({plan.layouts[v].strides for v in (*parts, joined)}) == 1


def test_nested_concat_as_in_densenet():
    b = Builder()
    x = b.conv(b.transpose(b.input(1, 3, 6, 6), 0, 2, 3, 1), 8, zero_point=0)
    for _ in range(3):
        y = b.conv(x, 4, (3, 3), pads=SAME, zero_point=0)
        x = b.concat(3, x, y)
    assert len(copies(check(b, b.conv(x, 4)))) == 1


def test_concat_of_rows_with_a_halo_copies():
    b = Builder()
    x = b.transpose(b.input(1, 3, 6, 6), 0, 2, 3, 1)
    p, q = b.conv(x, 4, zero_point=0), b.conv(x, 4, zero_point=0)
    plan = check(b, b.conv(b.concat(1, p, q), 4), b.conv(p, 4, (3, 3), pads=SAME))
    assert [c.value for c in copies(plan)[1:]] == [p]


def test_a_halo_does_not_grow_inside_a_padded_whole():
    b = Builder()
    x = b.conv(b.input(1, 6, 6, 3), 4, zero_point=0)
    p, q = b.conv(x, 4, zero_point=0), b.conv(x, 4, zero_point=0)
    joined = b.concat(3, p, q)
    plan = check(b, b.conv(p, 4, (3, 3), pads=SAME), b.conv(b.pad(joined, (0, 0), (1, 1), (1, 1), (0, 0), value=1.0), 4))
    assert [c.value for c in copies(plan)[1:]] == [p]


@pytest.mark.parametrize("twice", [False, True])
def test_concat_of_values_that_lie_elsewhere(twice):
    b = Builder()
    x = b.input(1, 4, 4, 4, zero_point=0)
    y = b.conv(x, 4, zero_point=0)
    check(b, b.concat(3, x, y, *([y, y] if twice else []), b.channels(y, 1, 3), b.int8_const(1, 4, 4, 2)), b.concat(3, y, x))


def test_a_convolution_does_not_read_the_callers_memory():
    b = Builder()
    x = b.input(1, 5, 5, 4)
    plan = check(b, b.conv(x, 4, (3, 3), pads=SAME), b.max_pool(x, (2, 2)))
    assert len(copies(plan)) == 1
    assert {r.operands[0].buffer.space for r in runs(plan)} == {Space.arena, Space.input}


def test_logits_are_written_to_the_callers_memory_through_a_reshape():
    b = Builder()
    x = b.reshape(b.input(1, 12), 1, 1, 1, 12)
    plan = check(b, b.reshape(b.conv(x, 10), 1, 10))
    assert len(copies(plan)) == 1
    assert plan.layouts[plan.outputs[0]].buffer.space is Space.output


def test_outputs_that_others_read_are_copied():
    b = Builder()
    y = b.conv(b.input(1, 4, 4, 4), 4)
    plan = check(b, y, y, b.conv(y, 4), b.inputs[0])
    assert len(copies(plan)) == 4


def test_reshape_of_a_halo_is_copied_and_two_halos_need_a_dense_buffer():
    b = Builder()
    y = b.conv(b.input(1, 4, 6, 4), 4)
    z = b.reshape(y, 1, 6, 4, 4)
    plan = check(b, b.conv(y, 4, (3, 3), pads=SAME), b.conv(z, 4, (3, 3), pads=SAME), b.conv(b.reshape(y, 1, 1, 24, 4), 3))
    assert len(copies(plan)) == 4


def test_a_producer_writes_through_a_reshape_into_its_halo():
    b = Builder()
    x = b.transpose(b.input(1, 6, 5, 4), 0, 2, 3, 1)
    split = b.transpose(b.reshape(x, 1, 5, 4, 2, 3), 0, 1, 2, 4, 3)
    plan = check(b, b.depthwise(b.reshape(split, 1, 5, 4, 6), pads=SAME))
    assert len(copies(plan)) == 2
    assert plan.layouts[split].strides[1:] == (36, 6, 2, 1)


def test_reshaped_heads_are_written_into_their_concat():
    b = Builder()
    x = b.conv(b.input(1, 4, 4, 3), 8, zero_point=0)
    heads = [b.conv(v, 6, zero_point=0) for v in (x, b.max_pool(x, (2, 2), (2, 2)))]
    joined = b.concat(1, *(b.reshape(h, 1, h.type.size // 3, 3) for h in heads))
    plan = check(b, b.softmax(joined, 2))
    assert len(copies(plan)) == 1
    assert plan.layouts[heads[1]].offset - plan.layouts[joined].offset == heads[0].type.size


def test_channel_slices_share_the_halo_of_their_operand():
    b = Builder()
    y = b.conv(b.input(1, 5, 5, 4), 8)
    left, right = b.channels(y, 0, 3), b.channels(y, 3, 8)
    plan = check(b, b.conv(left, 4, (3, 3), pads=SAME), b.depthwise(right, pads=SAME))
    assert len(copies(plan)) == 1


def test_shuffle_as_in_shufflenet():
    b = Builder()
    y = b.conv(b.input(1, 5, 5, 4), 6)
    s = b.reshape(b.transpose(b.reshape(y, 1, 5, 5, 2, 3), 0, 1, 2, 4, 3), 1, 5, 5, 6)
    assert len(copies(check(b, b.depthwise(s, pads=SAME), s))) == 3


def test_pads():
    b = Builder()
    y = b.conv(b.input(1, 5, 5, 4), 4)
    padded = b.pad(y, (0, 0), (1, 2), (0, 3), (0, 0), value=0.3)
    plan = check(b, b.conv(padded, 4, (3, 3), pads=SAME), b.pad(y, (0, 0), (-1, 2), (0, -2), (1, 0)))
    assert len(copies(plan)) == 2
    check(b, b.conv(b.pad(y, (0, 0), (1, 1), (2, 1), (0, 0), mode=PadMode.reflect), 3))


def test_argmax_is_written_as_int64():
    b = Builder()
    y = b.conv(b.input(1, 3, 3, 4), 7)
    plan = check(b, b.argmax(y, 3), b.argmax(y, 1, keepdims=False))
    assert plan.layouts[plan.outputs[0]].strides[-1] == 8


# --- random graphs -------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_graphs())
def test_random_graphs_compute_the_reference_in_the_planned_memory(grown):
    b, outputs = grown
    check(b, *outputs)


# --- the arena and the strides ---------------------------------------------------------------------------------------

INTERVALS = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 8), st.integers(1, 50)), min_size=1, max_size=40)


@settings(max_examples=200, deadline=None)
@given(INTERVALS)
def test_no_two_live_blocks_overlap(intervals):
    blocks = place([Block(str(n), first, first + length, size * ALIGNMENT) for n, (first, length, size) in enumerate(intervals)])
    for a, b in itertools.combinations(blocks, 2):
        assert not a.meets(b) or a.end <= b.offset or b.end <= a.offset
    assert live_bytes(blocks) <= arena_size(blocks) <= sum(b.size for b in blocks)


def test_a_chain_needs_its_largest_pair_only():
    blocks = place([Block(str(n), n, n + 1, 64 * size) for n, size in enumerate((3, 7, 2, 9, 1))])
    assert arena_size(blocks) == live_bytes(blocks) == 11 * 64


SHAPES = st.sampled_from([(2, 3, 4), (6, 4), (24,), (4, 6), (1, 24, 1), (2, 12), (3, 8), (2, 1, 3, 2, 2)])


@given(SHAPES, SHAPES, st.integers(1, 3), st.integers(1, 2))
def test_reshaped_strides_agree_with_numpy(old, new, gap, step):
    base = np.zeros((*old[:-1], old[-1] * gap), np.int8)[tuple([slice(None)] * (len(old) - 1) + [slice(0, old[-1] * step, step)])]
    strides = reshaped_strides(base.shape, base.strides, new, 1) if base.shape == old else None
    if base.shape == old:
        try:
            expected = base.view()
            expected.shape = new
        except AttributeError:
            assert strides is None
        else:
            assert strides is not None
            assert all(d == 1 or a == b for d, a, b in zip(new, strides, expected.strides))


def test_dense_strides():
    assert dense_strides((2, 3, 4), 1) == (12, 4, 1)
    assert dense_strides((), 8) == ()
