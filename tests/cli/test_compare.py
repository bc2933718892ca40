"""`qcompile compare`: the figures of each target, their kinds, the page and the condition."""

from __future__ import annotations

import csv
import json
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import pytest
from command_line import Run, failed

from qcompiler.cli import peers
from qcompiler.cli.comparison import wilson
from qcompiler.cli.requirement import Requirement
from qcompiler.errors import UsageError

TARGETS = "host,arm64-dotprod,arm64@macos,onnx-qdq"


def test_targets_side_by_side(run: Run, network: Path, calib: Path, evaluation: Path, tmp_path: Path) -> None:
    data = ("--calib", calib, "--data", evaluation, "--labels", "labels", "--limit", "120", "--seconds", "0.05", "--emulated", "2")
    files = ("--html", tmp_path / "page.html", "--csv", tmp_path / "rows.csv")
    result = run("compare", network, "--targets", TARGETS, *data, *files, "--require", "accuracy>=90% and latency<1s", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    rows = {r["target"]: r for r in found["rows"]}
    assert list(rows) == ["onnxruntime float", *TARGETS.split(",")]
    assert {n: r["ran"] for n, r in rows.items() if r["compiled"]} == {"host": "natively", "arm64-dotprod": "emulated", "arm64@macos": "not run"}
    assert (rows["host"]["same_bits"], rows["host"]["samples"], rows["host"]["latency_kind"]) == (True, 120, "measured")
    arm = rows["arm64-dotprod"]
    assert (arm["same_bits"], arm["samples"], arm["latency_kind"], arm["latency_ms"]) == (True, 2, "counted", None)
    assert arm["macs"] / 16 < arm["instructions"] < arm["macs"]
    assert arm["value"] == rows["host"]["value"] >= 0.95
    assert rows["host"]["low"] < rows["host"]["value"] <= rows["host"]["high"]
    assert rows["arm64@macos"]["same_bits"] is None
    assert found["held"] == {"host": True, "arm64-dotprod": None, "arm64@macos": None, "onnx-qdq": True}
    with (tmp_path / "rows.csv").open() as file:
        assert [r["target"] for r in csv.DictReader(file)] == list(rows)
    check_page((tmp_path / "page.html").read_text())


def check_page(text: str) -> None:
    """Well-formed, self-contained, for both colour schemes and for phones."""
    open_tags, links = list[str](), list[str]()

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            links.extend(v or "" for k, v in attrs if k in ("src", "href"))
            if tag not in ("meta", "link"):
                open_tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    Reader().feed(text)
    assert open_tags == []
    assert [x for x in links if not x.startswith("data:")] == []
    assert "<script" not in text
    assert "prefers-color-scheme: dark" in text
    assert "width=device-width" in text
    assert text.count('class="bar"') > 20


def test_a_condition_that_fails(run: Run, network: Path, calib: Path) -> None:
    arguments = ("compare", network, "--calib", calib, "--limit", "16", "--seconds", "0.02", "--require", "weights<1KB or latency<1us")
    result = run(*arguments)
    assert result.exit_code == 1
    assert "does not hold for host" in result.stderr


@pytest.mark.parametrize(
    ("named", "rows"),
    [
        ("onnxruntime-int8", {"onnxruntime int8": "in onnxruntime"}),
        ("openvino,openvino-int8", {"OpenVINO float": "in OpenVINO", "OpenVINO int8": "in OpenVINO"}),
    ],
)
def test_other_runtimes_have_rows(run: Run, network: Path, calib: Path, evaluation: Path, named: str, rows: dict[str, str]) -> None:
    if "openvino" in named:
        pytest.importorskip("nncf", reason="the extra qcompiler[peers] is not installed")
    data = ("--calib", calib, "--data", evaluation, "--labels", "labels", "--limit", "60", "--seconds", "0.02")
    result = run("compare", network, "--peers", named, *data, "--require", "same_bits == 1", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [r["target"] for r in found["rows"]] == ["onnxruntime float", *rows, "host"]
    for row in found["rows"][1:-1]:
        assert (row["ran"], row["compiled"], row["same_bits"], row["latency_kind"]) == (rows[row["target"]], False, None, "measured")
        assert row["value"] >= 0.95
        assert row["weight_bytes"] > 0
    assert list(found["held"]) == ["host"]


def test_a_peer_that_is_not_installed_is_named(run: Run, network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda name: None if name == "nncf" else find_spec(name))
    assert "the peer openvino-int8 needs" in failed(run("compare", network, "--peers", "openvino-int8"), 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--require", "speed>3"), "'speed' is no figure"),
        (("--peers", "tflite"), "--peers knows onnxruntime-int8, openvino, openvino-int8; found 'tflite'"),
        (("--targets", "host,arm65"), "arm65"),
        (("--labels", "labels"), "--labels names an array of --data"),
    ],
)
def test_wrong_use(run: Run, network: Path, arguments: tuple[str, ...], message: str) -> None:
    assert message in failed(run("compare", network, *arguments), 2)


FIGURES = {"accuracy": 0.82, "latency": 4.9, "code": 2048.0, "peak": None}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("accuracy>=.82 and latency<5ms", True),
        ("accuracy>=82% and latency < 4900us", False),
        ("latency<0.005s", True),
        ("code<=2KB and not code<2KB", True),
        ("0.8 < accuracy < 0.9", True),
        ("accuracy >= (0.9 - 9%) * 1 + 0", True),
        ("accuracy/0 > 1", False),
        ("peak>50", None),
        ("peak>50 or latency<5", True),
        ("peak>50 and latency>5", False),
        ("peak>50 and latency<5", None),
        ("not peak>50", None),
        ("latency > -1", True),
    ],
)
def test_conditions(text: str, expected: bool | None) -> None:
    assert Requirement.parse(text, set(FIGURES)).holds(FIGURES) is expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "accuracy",
        "1+1",
        "__import__('os').system('true')>0",
        "accuracy.real>1",
        "[x for x in ()]>1",
        "accuracy>'a'",
        "accuracy>True",
        "(" * 500,
        "a" * 2000,
    ],
)
def test_what_is_no_condition(text: str) -> None:
    with pytest.raises(UsageError, match="cannot read --require"):
        Requirement.parse(text, {"accuracy", "latency"})


def test_wilsons_interval() -> None:
    """Against the quadratic that defines it, (p - p0)^2 = z^2 p0 (1 - p0) / n, and at the ends."""
    for right, count in ((82, 100), (1, 7), (499, 500)):
        for p0 in wilson(right, count):
            assert (right / count - p0) ** 2 == pytest.approx(1.959964**2 * p0 * (1 - p0) / count)
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == pytest.approx(1.0)
