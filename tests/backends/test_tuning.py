"""Tiles from a table: the same bits with every choice, the same bytes with the same table, and only choices that there are."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from command_line import failed, invoke
from integer_graphs import Builder

from qcompiler import runtime
from qcompiler.backends import reference
from qcompiler.backends.image import lay_out
from qcompiler.backends.llvm.kernels.tiles import choose_segments
from qcompiler.backends.llvm.kernels.tuned import candidates, key_of, segments_of, text_of
from qcompiler.backends.llvm.lower import compile_object
from qcompiler.backends.llvm.target import TARGETS, Target, find_target
from qcompiler.errors import UsageError
from qcompiler.ir.graph import Graph
from qcompiler.tuning import TRIED, Table, chosen, problems, tune

ROWS = [t if t.runs_here else t.generic() for t in TARGETS.values()]
MODELS = Path(__file__).parents[2] / "models"


@cache
def network() -> tuple[Graph, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A first layer, a grouped one, a pointwise one, four bits, and a dense one of a single pixel."""
    b = Builder(5)
    y = b.conv(b.input(1, 9, 8, 3), 36, (3, 3), strides=(2, 2), pads=((1, 1), (1, 1)))
    y = b.conv(b.conv(y, 24, (3, 3), groups=2), 70, reach=7)
    graph = b.graph(b.conv(y, 100, (3, 2)))
    feeds = b.feeds()
    return graph, feeds, reference.run(graph, feeds)


def ranked(target: Target, rank: int) -> Table:
    """The table of the choices of one rank."""
    found = {key_of(p): candidates(p, TRIED) for p in problems(network()[0], target).values()}
    return Table(target.name, None, {key: text_of(ways[min(rank, len(ways) - 1)]) for key, ways in found.items()})


@pytest.mark.parametrize("rank", [1, TRIED - 1])
@pytest.mark.parametrize("target", ROWS, ids=lambda t: t.name)
def test_every_choice_gives_the_same_bits(target: Target, rank: int) -> None:
    graph, feeds, expected = network()
    table = ranked(target, rank)
    code = compile_object(graph, table.applied(target))
    image = lay_out(code.object)
    program = runtime.Program.of_image(code.interface, image.data, image.entries, threads=2)
    found = program.run_integer(feeds)
    assert all(np.array_equal(found[name], y) for name, y in expected.items())


@pytest.mark.parametrize("target", ROWS, ids=lambda t: t.name)
def test_the_first_choice_is_that_of_the_model_and_all_differ(target: Target) -> None:
    for p in problems(network()[0], target).values():
        ways = candidates(p, TRIED)
        assert ways[0] == choose_segments(p)
        assert len(set(ways)) == len(ways) > 1
        for way in ways:
            assert segments_of(replace(p, target=replace(p.target, tuned=((key_of(p), text_of(way)),)))) == way


@pytest.mark.parametrize("text", ["", "fast", "1*1:1x1u1c1", "1*4:500x1u1c1", "9*4:1x1u1c1"])
def test_tiles_that_do_not_fit_are_refused(text: str) -> None:
    target = TARGETS["x86-64-avx2"]
    p = next(p for p in problems(network()[0], target).values() if p.channels > 2 * target.lanes)
    with pytest.raises(UsageError, match="expected tiles that fit .* delete this entry"):
        segments_of(replace(p, target=replace(target, tuned=((key_of(p), text),))))


def test_the_same_table_gives_the_same_bytes_and_another_one_others() -> None:
    graph, target = network()[0], find_target("host")
    made = [compile_object(graph, row).object for row in (target, *[ranked(target, 1).applied(target)] * 2)]
    assert made[0] != made[1] == made[2]


def test_noise_is_no_reason() -> None:
    assert chosen([1.0, 0.99, 0.98]) == 0
    assert chosen([1.0, 0.9, 0.8, 0.85]) == 2
    assert chosen([1.0]) == 0


def test_only_what_the_table_lacks_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, feeds, _ = network()
    target, feeds = find_target("host"), {name: x.astype(np.float32) for name, x in feeds.items()}
    whole = tune(graph, target, feeds, seconds=0.0)
    assert set(whole.tiles) == {key_of(p) for p in problems(graph, target).values()}
    key = min(whole.tiles)
    part = replace(whole, tiles={k: v for k, v in whole.tiles.items() if k != key} | {"another network": "1*1:1x1u1c1"})
    assert set(tune(graph, target, feeds, part, seconds=0.0).tiles) == {*whole.tiles, "another network"}
    monkeypatch.setattr("qcompiler.tuning.times_in_turns", lambda *_: pytest.fail("measured again"))
    assert tune(graph, target, feeds, whole) is whole
    absent = replace(target, name="absent", features=("no such feature",), by_meaning=False)
    assert tune(graph, absent, feeds).tiles == {}


# --- the command -------------------------------------------------------------------------------------------------------


def test_the_command_keeps_a_table_and_obeys_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qcompiler.tuning.TRIED", 2)
    monkeypatch.setattr("qcompiler.tuning.tune.__defaults__", (None, 0.0))
    network, calib, path = MODELS / "digits_resnet.onnx", MODELS / "digits_calib.npz", tmp_path / "tiles.json"
    for place in ("first", "second"):
        result = invoke(network, "--calib", calib, "--limit", "4", "--tune", path, "-o", tmp_path / place)
        assert result.exit_code == 0, result.output
        if place == "first":
            table = path.read_bytes()
    assert path.read_bytes() == table
    assert (tmp_path / "first/model.o").read_bytes() == (tmp_path / "second/model.o").read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("tiles", "expected a table of tiles"),
        (json.dumps({"format": "qcompiler tiles 1", "target": "arm64", "cpu": None, "tiles": {}}), "found one of target arm64"),
        (json.dumps({"format": "qcompiler tiles 9", "target": "x86-64", "cpu": None, "tiles": {}}), "format 'qcompiler tiles 9'"),
    ],
)
def test_other_files_are_refused_before_any_work(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "tiles.json"
    path.write_text(content)
    assert message in failed(invoke(MODELS / "digits_resnet.onnx", "--target", "x86-64", "--tune", path, "-o", tmp_path / "out"), 2)


def test_an_onnx_target_has_no_tiles(tmp_path: Path) -> None:
    result = invoke(MODELS / "digits_resnet.onnx", "--target", "onnx-qdq", "--tune", tmp_path / "t", "-o", tmp_path / "x.onnx")
    assert "has none; leave it out" in failed(result, 2)
