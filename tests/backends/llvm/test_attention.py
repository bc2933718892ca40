"""The attention kernel beyond its bits (`test_kernels`): proofs of its code, and its working memory."""

from __future__ import annotations

import numpy as np
import pytest
from integer_graphs import Builder

from qcompiler.backends.certificate import certify
from qcompiler.backends.llvm.dsl import WHOLE
from qcompiler.backends.llvm.kernels.activation_products import word_order
from qcompiler.backends.llvm.kernels.table import scratch_of
from qcompiler.backends.llvm.lower import compile_object
from qcompiler.backends.llvm.order import wide_order
from qcompiler.backends.llvm.split import MOST_PIECES
from qcompiler.backends.llvm.target import TARGETS
from qcompiler.ir.graph import Graph
from qcompiler.passes.partition import partition
from qcompiler.passes.plan_memory import plan_memory


def graph(b: Builder, causal: bool = False) -> Graph:
    q, k, v = b.input(1, 65, 6, 64), b.input(1, 65, 3, 64), b.input(1, 65, 3, 50)
    return b.graph(b.attention(b.clamp(q), b.clamp(k), b.clamp(v), causal=causal))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda t: t.name)
def test_code_is_integer_only_with_little_stack(target, causal: bool) -> None:
    certificate = certify(compile_object(graph(Builder(1), causal), target).object, "model_run", target.arch)
    assert certificate.ok, "; ".join(map(str, certificate.findings))
    assert certificate.stack_bytes < 4096


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda t: t.name)
def test_working_memory_is_apart_from_operands_and_result(target) -> None:
    """In the arena, while the step runs and no longer; without it, nothing is planned."""
    g = graph(Builder(1))
    steps, scratch = partition(g), scratch_of(target)
    plan = plan_memory(g, steps, scratch)
    (found,) = (block for block in plan.blocks if "(scratch)" in block.name)
    assert found.size >= max(map(scratch, steps)) > 0
    assert found.first == found.last
    others = [block for block in plan.blocks if block is not found and block.meets(found)]
    assert others
    assert all(block.end <= found.offset or found.end <= block.offset for block in others)
    assert not any("(scratch)" in block.name for block in plan_memory(g, steps).blocks)


def test_pieces_have_slots_of_their_own() -> None:
    """The slot of a piece is the floor of its beginning times their number, which is at least that of the pieces."""
    for slots in range(1, MOST_PIECES + 1):
        for pieces in range(1, slots + 1):
            step = -(-WHOLE // pieces)
            found = [(i * step * slots) // WHOLE for i in range(pieces)]
            assert len(set(found)) == pieces
            assert max(found) < slots


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda t: t.name)
def test_words_are_in_the_order_of_packing(target) -> None:
    """Of whole blocks as `order` has it; of smaller ones every key once, where two packed registers hold it."""
    assert (word_order(target, 4) == wide_order(target, 16, 4)).all()
    for count in (1, 2, 3):
        held = word_order(target, count)
        assert sorted(held[held >= 0]) == list(range(count * target.lanes))
        assert (np.bincount(held + 1)[1:] == 1).all()
