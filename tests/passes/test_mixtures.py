"""Inputs in the manner of calibration samples."""

from __future__ import annotations

import pytest

from qcompiler.passes.mixtures import MIXED, Mixtures

torch = pytest.importorskip("torch")


def test_mixtures_lie_between_samples_and_are_the_same_every_time() -> None:
    random = torch.Generator().manual_seed(1)
    samples = [{"x": torch.rand((1, 3, 9, 7), generator=random)} for _ in range(4)]
    first, second = (Mixtures(torch, samples).draw(16)["x"] for _ in range(2))
    assert first.shape == (16, 3, 9, 7)
    assert torch.equal(first, second)
    assert len({tuple(x.ravel().tolist()) for x in first}) > 10
    everything = torch.cat([s["x"] for s in samples])
    assert (everything.amin(0) <= first + 1e-6).all()
    assert (first <= everything.amax(0) + 1e-6).all()


def test_several_inputs_are_mixed_alike_and_integers_are_not() -> None:
    samples = [{"x": torch.full((2, 5), float(i)), "n": torch.full((2, 5), i)} for i in range(3)]
    made = Mixtures(torch, samples).draw(7)
    assert torch.equal(made["x"], made["n"].to(torch.float32))
    assert torch.equal(made["n"][::2], made["n"][1::2])
    floats = Mixtures(torch, [{"x": s["x"], "y": -s["x"]} for s in samples]).draw(30)
    assert torch.equal(floats["x"], -floats["y"])
    assert (floats["x"] % 1 <= MIXED * 2).logical_or(floats["x"] % 1 >= 1 - MIXED * 2).all()
    assert (floats["x"] % 1 > 0).any()
