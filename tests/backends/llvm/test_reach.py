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


def loops_over(positions: int) -> st.SearchStrategy[Loop]:
    return st.integers(1, min(4, positions)).map(lambda size: Loop(-(-positions // size), size, positions))


loops = st.integers(1, 12).flatmap(loops_over)
launches = st.integers(1, 12).flatmap(lambda n: st.builds(Reach, st.lists(loops_over(n), min_size=1, max_size=2).map(tuple), st.tuples(walks), walks))


def bytes_of(walk: Walk, positions: set[int]) -> set[int]:
    """From the first to the last: what lies between positions counts, too."""
    if not positions:
        return set()
    return set(range(walk.at.offset + min(positions) * walk.step, walk.at.offset + max(positions) * walk.step + walk.nbytes))


@given(launches, launches, st.integers(1, 4))
def test_what_may_follow_meets_nothing_of_other_pieces(before: Reach, after: Reach, pieces: int) -> None:
    """By sets of bytes: then any interleaving of pieces computes the same. What only one of two loops has computed is not finished."""

    def parts(r: Reach, i: int) -> list[set[int]]:
        return [set(range(*loop.part(i, pieces))) for loop in r.loops]

    def some(walk: Walk, r: Reach) -> list[set[int]]:
        return [bytes_of(walk, set[int]().union(*parts(r, i))) for i in range(pieces)]

    read, written = some(before.reads[0], before), some(before.writes, before)
    finished = [bytes_of(before.writes, set.intersection(*parts(before, i))) for i in range(pieces)]
    needs, gives = some(after.reads[0], after), some(after.writes, after)
    if follows(before, after, pieces):
        assert all(needs[i] & set[int]().union(*written) <= finished[i] for i in range(pieces))
        assert not any(g & t for g in gives for t in (*read, *written))


def test_what_one_of_two_loops_has_yet_to_compute_is_waited_for() -> None:
    """Rows 4 and 5 belong to the first piece of one loop, and to the second of the other."""
    whole, thirds = Loop(7, 1, 7), Loop(3, 3, 7)
    assert [loop.part(0, 2) for loop in (whole, thirds)] == [(0, 4), (0, 6)]
    result = Walk(Address(ARENA, 0), 20, 20)
    after = Reach((thirds,), (result,), Walk(Address(ARENA, 2000), 5, 5))
    assert follows(Reach((thirds,), (), result), after, 2)
    assert not follows(Reach((whole, thirds), (), result), after, 2)


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
