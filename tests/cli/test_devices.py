"""`--device`: latencies of another machine, told as such."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Run, failed
from ssh_server import needs_sshd

from qcompiler.backends.remote import Device


def address(device: Device) -> str:
    return f"ssh://{device.host}:{device.port}"


@needs_sshd
def test_latency_is_measured_on_the_device(run: Run, artifact: Path, device: Device) -> None:
    result = run("bench", artifact, "--device", address(device), "--seconds", "0.01", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["kind"] == "remote"
    assert address(device) in found["cpu"]
    assert found["milliseconds"]["compiled"]["median"] > 0


@needs_sshd
def test_targets_that_fit_are_compared_on_the_device(run: Run, network: Path, calib: Path, device: Device) -> None:
    options = ("--calib", calib, "--limit", "20", "--seconds", "0.01", "--emulated", "2")
    result = run("compare", network, "--targets", "host,arm64-dotprod", *options, "--device", address(device), "--json")
    assert result.exit_code == 0, result.output
    rows = {r["target"]: r for r in json.loads(result.stdout)["rows"]}
    kinds = {name: (r["latency_kind"], r["same_bits"]) for name, r in rows.items() if r["compiled"]}
    here, there = (("remote", True), ("counted", True))
    assert kinds == {"host": here, "arm64-dotprod": there}
    assert rows["host"]["latency_ms"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--device", "phone"), "expected a device as ssh://"),
        (("--device", "ssh://phone", "--layers"), "leave out"),
        (("--device", "ssh://phone", "--threads", "2"), "leave out"),
    ],
)
def test_wrong_use(run: Run, artifact: Path, arguments: tuple[str, ...], message: str) -> None:
    assert message in failed(run("bench", artifact, *arguments), 2)
