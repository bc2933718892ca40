"""Inputs counted in steps of their own per channel: the same function, stored without error, the same bits everywhere."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from float_graphs import Build, graph_of

from qcompiler import runtime
from qcompiler.api import reference_run
from qcompiler.backends.emulate import emulated
from qcompiler.backends.image import flatten
from qcompiler.backends.llvm.lower import ObjectCode, compile_object
from qcompiler.backends.llvm.target import TARGETS, Target
from qcompiler.backends.onnx import export_qdq, export_qoperator
from qcompiler.backends.onnx.bound import saturates
from qcompiler.ir.graph import Declined, Graph
from qcompiler.ir.interpret import evaluate
from qcompiler.ir.ops import Conv, CountSteps, Pad
from qcompiler.passes.count_steps import count_steps
from qcompiler.passes.input_levels import Levels
from qcompiler.passes.pipeline import Options, quantize

SIZE, OUT = 21, "y0"
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
LAYOUTS = ("channels-first", "channels-last")
LEVELS = Levels((0.5, 0.25, 2.0), (100.5, 130.0, 90.25))


def network(layout: str, padded: bool = True) -> Graph:
    b = Build()
    x = b.input(1, 3, SIZE, SIZE) if layout == LAYOUTS[0] else b.input(1, SIZE, SIZE, 3)
    last = b.last(x) if layout == LAYOUTS[0] else x
    pads = ((1, 1), (1, 1)) if padded else ((0, 0), (0, 0))
    return graph_of(b.conv(b.conv(last, 8, 3, pads=pads), 5, 1))


def images(layout: str, count: int = 4) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(7)
    found = [((rng.integers(0, 256, (1, SIZE, SIZE, 3)) / np.float32(255) - MEAN) / STD).astype(np.float32) for _ in range(count)]
    return [{"x": np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if layout == LAYOUTS[0] else x} for x in found]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("zero", [LEVELS.zero, (17.0, 17.0, 17.0)])
def test_the_function_stays_the_same(layout: str, padded: bool, zero: tuple[float, ...]) -> None:
    graph, levels = network(layout, padded), replace(LEVELS, zero=zero, axis=1 if layout == LAYOUTS[0] else 3)
    counted = count_steps(graph, {"x": levels}, Declined())
    (feeds,) = images(layout, 1)
    before, after = (evaluate(g, feeds)[g.outputs[0]] for g in (graph, counted))
    np.testing.assert_allclose(after, before, rtol=0, atol=2e-4 * np.abs(before).max())
    kinds = [type(v.op) for v in counted.order]
    assert kinds.count(CountSteps) == 1
    assert kinds.count(Pad) == (padded and levels.common_zero is None), "a channel of ones only where padding would know of the shift"


def test_what_is_not_read_by_convolutions_alone_keeps_one_step() -> None:
    b, declined = Build(), Declined()
    x = b.input(1, SIZE, SIZE, 3)
    graph = graph_of(b.conv(x, 4, 3), b.normalized(x))
    assert count_steps(graph, {"x": replace(LEVELS, axis=3)}, declined) is graph
    assert any("something else than convolutions of a few channels" in reason for _, reason in declined.reasons)
    assert count_steps(graph, {"y": replace(LEVELS, axis=3)}, Declined()) is graph


@cache
def quantized(layout: str) -> Graph:
    return quantize(network(layout), images(layout)).integer_graph


@cache
def compiled(layout: str, target: Target) -> ObjectCode:
    return compile_object(quantized(layout), target)


RUNNING = [t for t in TARGETS.values() if t.runs_here or t.name in ("arm64", "arm64-dotprod")]
"""Here, or under unicorn."""


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("target", RUNNING, ids=lambda t: t.name)
def test_every_target_gives_the_bits_of_the_reference(layout: str, target: Target) -> None:
    code = compiled(layout, target)
    image = flatten(code.object)
    native = target.runs_here
    program = runtime.Program.of_image(code.interface, image.data, image.entries) if native else emulated(code.interface, image, target.features)
    for feeds in images(layout, 2 if native else 1):
        wild = {"x": feeds["x"] * np.float32(1.7) + np.float32(0.013)}
        for given in (feeds, wild):
            assert (program.run(given)[OUT] == reference_run(quantized(layout), given)[OUT]).all()
        (tensor,) = program.inputs
        integers = program.run_integer({"x": tensor.quantize(feeds["x"])})[OUT]
        (answer,) = program.outputs
        assert (program.run(feeds)[OUT] == np.float32(answer.scale) * (integers.astype(np.float32) - answer.zero_point)).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pixels_are_stored_exactly(layout: str) -> None:
    (tensor,) = compiled(layout, TARGETS["x86-64"]).interface.inputs
    assert tensor.axis == (1 if layout == LAYOUTS[0] else 3)
    shape = [-1 if a == tensor.axis else 1 for a in range(4)]
    scale, zero = (np.array(n).reshape(shape) for n in (tensor.scale, tensor.zero_point))
    for feeds in images(layout):
        assert np.abs(scale * (tensor.quantize(feeds["x"]) - zero) - feeds["x"]).max() < 1e-4


def test_a_network_on_images_is_nearer_to_the_float_one() -> None:
    """The only other errors are those of 8-bit weights."""
    b = Build()
    graph, samples = graph_of(b.conv(b.last(b.input(1, 3, SIZE, SIZE)), 8, 3, pads=((1, 1), (1, 1)))), images(LAYOUTS[0])
    noisy = [{"x": f["x"] + np.random.default_rng(i).uniform(-1e-3, 1e-3, f["x"].shape).astype(np.float32)} for i, f in enumerate(samples)]
    with_levels, without = (quantize(graph, s, Options()).integer_graph for s in (samples, noisy))
    assert [any(isinstance(v.op, CountSteps) for v in g.order) for g in (with_levels, without)] == [True, False]

    def error(g: Graph) -> float:
        return float(np.mean([np.square(reference_run(g, f)[OUT] - evaluate(graph, f)[graph.outputs[0]]).mean() for f in samples]))

    assert error(with_levels) < 0.6 * error(without)


@pytest.mark.skipif(saturates(), reason="onnxruntime's int8 kernels saturate on x86 without VNNI")
def test_exported_graphs_count_steps_before_they_quantize() -> None:
    import onnxruntime as ort

    found = quantize(network(LAYOUTS[0]), images(LAYOUTS[0]))
    (feeds,) = images(LAYOUTS[0], 1)
    ours = reference_run(found.integer_graph, feeds)[OUT]
    for model in (export_qdq(found.exchange_graph), export_qoperator(found.exchange_graph)):
        (theirs,) = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)
        assert np.abs(theirs - ours).max() <= 0.02 * np.abs(ours).max()


def test_a_channel_of_ones_is_the_fourth() -> None:
    graph = count_steps(network(LAYOUTS[1]), {"x": replace(LEVELS, axis=3)}, Declined())
    first = next(v for v in graph.order if isinstance(v.op, Conv))
    assert first.inputs[0].shape[3] == 4
