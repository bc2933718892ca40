"""Whether a launch must wait for all pieces of the one before: intervals against sets of bytes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.backends.llvm.launch import Address, Data
from qcompiler.backends.llvm.reach import Loop, Reach, Walk, follows, reach
from qcompiler.backends.llvm.split import bound
from qcompiler.passes.layouts import ARENA


def rows(n: int, reads: Sequence[tuple[int, int, int]], writes: tuple[int, int, int]) -> Reach:
    """n rows, one in a round; operands as (address, step, bytes)."""
    found = reach([Loop(n, 1, n)], [(Address(ARENA, a), s, b) for a, s, b in reads], (Address(ARENA, writes[0]), *writes[1:]))
    assert found is not None
    return found


BEFORE = rows(8, [(1000, 10, 30)], (0, 20, 20))


@pytest.mark.parametrize(
    "after, expected",
    [
        (rows(8, [(0, 20, 20)], (2000, 5, 5)), True),
        (rows(8, [(0, 20, 20), (3000, 5, 5)], (2000, 5, 5)), True),
        (rows(4, [(0, 40, 40)], (2000, 5, 5)), True),
        (rows(8, [(-20, 20, 60)], (2000, 5, 5)), False),
        (rows(8, [(0, 20, 21)], (2000, 5, 5)), False),
        (rows(5, [(0, 20, 20)], (2000, 5, 5)), False),
        (rows(8, [(0, 20, 20)], (1090, 5, 5)), False),
        (rows(8, [(0, 20, 20)], (-40, 5, 5)), True),
        (rows(8, [(0, 20, 20)], (-40, 5, 6)), False),
    ],
    ids=[
        "same rows",
        "and others",
        "pairs of rows",
        "a border",
        "a byte more",
        "other rows",
        "overwrites its input",
        "just before",
        "overwrites its result",
    ],
)
def test_follows(after: Reach, expected: bool) -> None:
    assert follows(BEFORE, after, 4) == expected


walks = st.builds(Walk, st.builds(Address, st.just(ARENA), st.integers(0, 40)), st.integers(1, 6), st.integers(1, 8))
loops = st.integers(1, 4).flatmap(lambda size: st.integers(size, 12).map(lambda positions: Loop(-(-positions // size), size, positions)))
launches = st.builds(Reach, st.tuples(loops), st.tuples(walks), walks)


def bytes_of(walk: Walk, positions: tuple[int, int]) -> set[int]:
    first, last = positions
    return set(range(walk.at.offset + first * walk.step, walk.at.offset + (last - 1) * walk.step + walk.nbytes)) if first < last else set()


@given(launches, launches, st.integers(1, 4))
def test_what_may_follow_meets_nothing_of_other_pieces(before: Reach, after: Reach, pieces: int) -> None:
    """By sets of bytes: then any interleaving of pieces computes the same."""
    parts = [(before.positions(i, pieces), after.positions(i, pieces)) for i in range(pieces)]
    read, written = ([bytes_of(w, b) for b, _ in parts] for w in (before.reads[0], before.writes))
    needs, gives = ([bytes_of(w, a) for _, a in parts] for w in (after.reads[0], after.writes))
    everything = set[int]().union(*written)
    free = all(needs[i] & everything <= written[i] for i in range(pieces))
    if follows(before, after, pieces):
        assert free
        assert not any(g & t for g in gives for t in (*read, *written))


@given(loops, st.integers(1, 5))
def test_parts_cover_all_positions(loop: Loop, pieces: int) -> None:
    met = set[int]()
    for p in range(pieces):
        first, last = loop.part(p, pieces)
        met |= set(range(first, last))
        rounds = range(bound(loop.rounds, p, pieces), bound(loop.rounds, p + 1, pieces))
        starts = [min(r * loop.size, loop.positions - loop.size) for r in rounds]
        assert set(range(first, last)) == {s + i for s in starts for i in range(loop.size)}
    assert met == set(range(loop.positions))


def test_constants_are_not_read_and_results_lie_in_memory() -> None:
    found = reach([Loop(2, 1, 2)], [(Data(b"x"), 1, 1)], (Address(ARENA, 0), 1, 1))
    assert found is not None
    assert found.reads == ()
    assert reach([Loop(2, 1, 2)], [], (Data(b"x"), 1, 1)) is None
