"""Inputs in the manner of calibration samples."""

from __future__ import annotations

import pytest

from qcompiler.passes.mixtures import MIXED, Mixtures

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("shape", [(1, 3, 9, 7), (1, 9, 7, 3), (1, 1, 5, 1)])
def test_parts_of_a_picture_stay_within_it(shape: tuple[int, ...]) -> None:
    """Bilinear interpolation and mixing are averages; drawn twice, all is the same."""
    random = torch.Generator().manual_seed(1)
    samples = [{"x": torch.rand(shape, generator=random)} for _ in range(4)]
    first, second = (Mixtures(torch, samples).draw(16)["x"] for _ in range(2))
    assert first.shape == (16, *shape[1:])
    assert torch.equal(first, second)
    assert len({tuple(x.ravel().tolist()) for x in first}) == 16
    everything = torch.cat([s["x"] for s in samples])
    assert everything.min() <= first.min()
    assert first.max() <= everything.max()


def test_channels_are_not_confused() -> None:
    """Each has a value of its own, everywhere."""
    for shape in ((1, 3, 1, 1), (1, 1, 1, 3)):
        x = torch.arange(3.0).reshape(shape).expand(1, *[n if n > 1 else 8 for n in shape[1:]])
        made = Mixtures(torch, [{"x": x.contiguous()}]).draw(5)["x"]
        torch.testing.assert_close(made, x.expand(5, *x.shape[1:]))


def test_several_inputs_stay_whole_and_integers_are_not_mixed() -> None:
    samples = [{"x": torch.full((2, 5), float(i)), "n": torch.full((2, 5), i)} for i in range(3)]
    made = Mixtures(torch, samples).draw(7)
    assert torch.equal(made["x"], made["n"].to(torch.float32))
    assert torch.equal(made["n"][::2], made["n"][1::2])
    floats = Mixtures(torch, [{"x": s["x"], "y": -s["x"]} for s in samples]).draw(30)
    assert torch.equal(floats["x"], -floats["y"])
    assert (floats["x"] % 1 <= MIXED * 2).logical_or(floats["x"] % 1 >= 1 - MIXED * 2).all()
    assert (floats["x"] % 1 > 0).any()
