"""16-bit sums of chains: proven from the weights, checked in lanes that raise when they leave their width."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.backends.llvm.chains import ChainPlan, Form, all_unsigned, plan_chains, prove
from qcompiler.backends.llvm.dot import FORMS, Chained
from qcompiler.errors import ProofError
from qcompiler.numerics.lanes import CheckedLanes, WidthError

DOTS = {name: dot for name, dot in FORMS.items() if isinstance(dot, Chained)}


def extremes(w: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Activations [groups, group] that drive the sums of some lane to either end, and random ones of the extreme values."""
    lane = w[rng.integers(len(w))]
    toward = np.where(lane > 0, 127, -128)
    return [toward, -1 - toward, *(np.full(lane.shape, v) for v in (-128, 127)), rng.choice([-128, 127], lane.shape)]


def evaluate(w: np.ndarray, x: np.ndarray, plan: ChainPlan, dot: Chained) -> np.ndarray:
    """sum of x * w for [lanes, groups, group] and [groups, group], by chains whose every partial sum is checked to fit in 16 bits."""
    total = np.zeros(len(w), np.int64)
    for form, chains in zip(plan.forms, plan.chains(0)):
        for chain in chains:
            words = [CheckedLanes(np.zeros(len(w)), 16) for _ in dot.cells]
            for g in chain:
                products = w[:, g] * (x[g] + (0 if form.signed else 128))
                words = [sums + CheckedLanes(products[:, list(cell)].sum(-1), 16) for sums, cell in zip(words, dot.cells)]
            total += sum(s.values for s in words)
            total -= 0 if form.signed else 128 * w[:, chain].sum((1, 2))
    return total


@pytest.mark.parametrize("name", DOTS)
@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 127), st.integers(1, 24), st.integers(1, 16))
def test_no_activation_leaves_16_bits(name: str, seed: int, reach: int, groups: int, lanes: int) -> None:
    rng, dot = np.random.default_rng(seed), DOTS[name]
    spread = rng.normal(size=(lanes, groups, dot.group)) * reach / 2
    w = np.clip(np.rint(spread), -reach, reach).astype(np.int64)
    plan = plan_chains(w[None], dot)
    assert sorted(plan.order[0]) == list(range(groups))
    assert prove(w[None], plan, dot) < 1 << 15
    for x in extremes(w, rng):
        np.testing.assert_array_equal(evaluate(w, x, plan, dot), (w * x).sum((1, 2)))


@pytest.mark.parametrize("name", DOTS)
@pytest.mark.parametrize("signed", [True, False])
def test_what_does_not_fit_is_refused(name: str, signed: bool) -> None:
    dot = DOTS[name]
    w = np.full((1, 2, 2, dot.group), 127)
    plan = ChainPlan((Form(signed, 2),), np.array([[1]]), np.array([[0, 1]]))
    with pytest.raises(ProofError, match="16 bits"):
        prove(w, plan, dot)
    with pytest.raises(WidthError):
        evaluate(w[0], np.full((2, dot.group), -128 if signed else 127), plan, dot)


@pytest.mark.parametrize("name", DOTS)
def test_the_bounds_are_reached(name: str) -> None:
    """The heaviest legal chain, and one step more."""
    dot = DOTS[name]
    for signed, per_cell in ((True, 255), (False, 128)):
        w = np.zeros((1, 1, 2, dot.group), np.int64)
        w[0, 0, 0], w[0, 0, 1, list(dot.cells[0])] = per_cell // 4, (per_cell - 2 * (per_cell // 4)) // 2
        w[0, 0, 1, dot.cells[0][0]] += per_cell - w[0, 0][:, list(dot.cells[0])].sum()
        plan = ChainPlan((Form(signed, 2),), np.array([[1]]), np.array([[0, 1]]))
        assert prove(w, plan, dot) == per_cell * (128 if signed else 255)
        w[0, 0, 1, dot.cells[0][0]] += 1
        with pytest.raises(ProofError):
            prove(w, plan, dot)


def test_seven_bits_need_no_sign() -> None:
    rng, dot = np.random.default_rng(3), DOTS["maddubs"]
    assert all_unsigned(rng.integers(-63, 64, (8, 5, 4)), dot)
    assert not all_unsigned(np.full((1, 1, 4), 127), dot)
    forms = plan_chains(rng.integers(-63, 64, (1, 16, 40, 4)), dot).forms
    assert forms
    assert not any(f.signed for f in forms)
