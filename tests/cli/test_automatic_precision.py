"""--precision auto and --precision PLAN.toml."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import Run, failed

import qcompiler
from qcompiler.passes.precision.plan import Plan, Precision, plan_text


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--precision", "auto"), "--precision auto needs --max-drop POINTS or --max-size SIZE"),
        (("--max-drop", "1"), "--max-drop and --max-size belong to --precision auto"),
        (("--precision", "auto", "--max-size", "small"), "expected a size such as 1.5MB"),
        (("--precision", "auto", "--max-size", "10"), "no choice of precisions keeps to 10 bytes"),
        (("--precision", "none.toml"), "cannot read the precision plan 'none.toml'"),
    ],
)
def test_what_cannot_be_is_said(run: Run, network: Path, calib: Path, arguments: tuple[str, ...], message: str) -> None:
    assert message in failed(run(network, "--calib", calib, *arguments), 2)


def test_automatic_choice_needs_data(run: Run, network: Path) -> None:
    assert "precision 'auto' needs calibration data" in failed(run(network, "--precision", "auto", "--max-drop", "1"), 2)
