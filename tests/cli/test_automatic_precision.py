"""--precision auto and --precision PLAN.toml."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from command_line import Run, failed

import qcompiler
from qcompiler.passes.precision.plan import Plan, Precision, plan_text, read_plan


def report(run: Run, *arguments: object) -> dict[str, object]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, object] = json.loads(result.stdout)
    return found


def test_automatic_choice_is_smaller_and_tells_what_it_loses(run: Run, network: Path, calib: Path, evaluation: Path, tmp_path: Path) -> None:
    found = report(run, network, "--calib", calib, "--precision", "auto", "--max-drop", 1, "-o", tmp_path / "a")
    choice = found["choice"]
    assert isinstance(choice, dict)
    assert choice["expected_drop"] <= 1
    assert choice["bytes"] < 0.65 * choice["bytes_w8a8"]
    assert set(choice["layers"].values()) <= {"w4a8", "w8a8"}
    data = np.load(evaluation)
    logits = qcompiler.load(tmp_path / "a").run({"input": data["input"]})["logits"]
    assert (logits.argmax(1) == data["labels"]).mean() > 0.96


def test_a_size_is_kept_and_shown(run: Run, network: Path, calib: Path, tmp_path: Path) -> None:
    whole = report(run, network, "--calib", calib, "--precision", "auto", "--max-size", "1MB", "-o", tmp_path / "a")["choice"]
    assert isinstance(whole, dict)
    assert set(whole["layers"].values()) == {"w8a8"}
    limit = int(0.8 * whole["bytes"])
    result = run(network, "--calib", calib, "--precision", "auto", "--max-size", limit, "-o", tmp_path / "a")
    assert result.exit_code == 0, result.output
    assert "layers below 8 bits" in result.output


def test_plans_are_followed_and_unknown_layers_refused(run: Run, network: Path, calib: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(plan_text(Plan(default=Precision(4, 8))))
    sizes = [report(run, network, "--calib", calib, "--precision", p, "-o", tmp_path / "a")["weights_size"] for p in (plan, "w8a8")]
    assert sizes[0] < sizes[1]  # type: ignore[operator]
    plan.write_text(plan_text(Plan({"nowhere": Precision(4, 8)})))
    assert "names 'nowhere', but the network has no such layer" in failed(run(network, "--calib", calib, "--precision", plan), 2)


def test_labels_of_calibration_data_are_looked_at(run: Run, network: Path, calib: Path, tmp_path: Path) -> None:
    data = dict(np.load(calib))
    count = len(data["input"])
    np.savez(tmp_path / "data.npz", **data, right=np.arange(count) % 10, odd=np.arange(count))
    arguments = ("--calib", tmp_path / "data.npz", "--precision", "auto", "--max-size", "1MB", "-o", tmp_path / "a")
    assert run(network, *arguments, "--labels", "right").exit_code == 0
    assert "expected labels below 10, the number of classes, found" in failed(run(network, *arguments, "--labels", "odd"), 2)
    assert "has no labels 'wrong'" in failed(run(network, *arguments, "--labels", "wrong"), 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--precision", "auto"), "--precision auto needs --max-drop POINTS, --max-size SIZE or --max-latency TIME"),
        (("--max-drop", "1"), "belong to --precision auto, found --precision w8a8"),
        (("--labels", "y"), "belong to --precision auto, found --precision w8a8"),
        (("--pareto", "a.html"), "belong to --precision auto, found --precision w8a8"),
        (("--precision", "auto", "--max-latency", "2"), "expected a time such as 2ms"),
        (("--precision", "auto", "--max-latency", "1us", "-t", "arm64-i8mm"), "keeps to 0.001 milliseconds"),
        (("--precision", "auto", "--max-size", "small"), "expected a size such as 1.5MB"),
        (("--precision", "auto", "--max-size", "10"), "no choice of precisions keeps to 10 bytes"),
        (("--precision", "none.toml"), "cannot read the precision plan 'none.toml'"),
    ],
)
def test_what_cannot_be_is_said(run: Run, network: Path, calib: Path, arguments: tuple[str, ...], message: str) -> None:
    assert message in failed(run(network, "--calib", calib, *arguments), 2)


def test_automatic_choice_needs_data(run: Run, network: Path) -> None:
    assert "precision 'auto' needs calibration data, to measure what fewer bits cost; give --calib" in failed(
        run(network, "--precision", "auto", "--max-drop", "1"), 2
    )


def test_latency_is_estimated_once_and_the_choice_drawn(run: Run, network: Path, calib: Path, tmp_path: Path) -> None:
    table, page, plan = (tmp_path / name for name in ("latencies.json", "pareto.html", "plan.toml"))
    limits = ("--precision", "auto", "--max-latency", "1s", "--max-drop", 2, "--max-size", "1MB", "--latency-table", table)
    common = (network, "--calib", calib, "-t", "arm64-i8mm", *limits, "-o", tmp_path / "a")
    first = report(run, *common, "--pareto", page)
    assert first["files"] == {"latency table": str(table), "pareto": str(page)}
    written = json.loads(table.read_text())
    assert written["cpu"] is None
    assert written["widths"] == [8, 7, 6, 4, 3, 2]
    assert all(ms > 0 for row in written["layers"].values() for ms in row)
    drawing = ElementTree.fromstring(page.read_text().split("<figure>")[1].split("</figure>")[0])
    assert [c.get("class") for c in drawing.iter("circle")].count("chosen") == 1
    assert "http" not in page.read_text().replace("http-equiv", "")
    table.write_text(
        json.dumps(written | {"layers": {name: [2 * t for t in row] for name, row in written["layers"].items()}, "other": 2 * written["other"]})
    )
    second = report(run, *common)
    assert second["choice"]["milliseconds_w8a8"] == pytest.approx(2 * first["choice"]["milliseconds_w8a8"])  # type: ignore[index]
    assert run("inspect", tmp_path / "a", "--plan", plan).exit_code == 0
    found = read_plan(plan)
    assert {name: f"w{p.weights}a8" for name, p in found.layers.items()} == second["choice"]["layers"]  # type: ignore[index]
    assert {name for name, p in found.layers.items() if p.activations == 16} == {"logits"} - {
        name for name, p in found.layers.items() if p.weights <= 4
    }
    assert run(network, "--calib", calib, "-t", "arm64-i8mm", "--precision", plan, "-o", tmp_path / "b").exit_code == 0
    assert run("inspect", tmp_path / "b", "--plan", again := tmp_path / "again.toml").exit_code == 0
    assert read_plan(again) == found
