"""Compiled networks that the tests of the command line share."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import Run, invoke

MODELS = Path(__file__).parents[2] / "models"


@pytest.fixture(scope="session")
def run() -> Run:
    """The command with the given arguments."""
    return invoke


@pytest.fixture(scope="session")
def network() -> Path:
    """The float network that most tests use."""
    return MODELS / "digits_resnet.onnx"


@pytest.fixture(scope="session")
def calib() -> Path:
    return MODELS / "digits_calib.npz"


@pytest.fixture(scope="session")
def evaluation() -> Path:
    return MODELS / "digits_eval.npz"


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory, network: Path, calib: Path) -> Path:
    """`network` compiled for this machine; tests must not change it."""
    folder = tmp_path_factory.mktemp("artifact") / "digits"
    result = invoke(network, "--calib", calib, "-o", folder)
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(autouse=True)
def no_debugging(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors are shown as users see them."""
    monkeypatch.delenv("QC_DEBUG", raising=False)
