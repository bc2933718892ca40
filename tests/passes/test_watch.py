"""What QC_DUMP and QC_VERIFY do between passes."""

from __future__ import annotations

from pathlib import Path

import pytest

import qcompiler
from qcompiler.errors import ProofError
from qcompiler.ir.graph import Graph, apply
from qcompiler.ir.ops import Input
from qcompiler.ir.pointwise import Exp
from qcompiler.ir.text import to_text
from qcompiler.ir.types import float_type
from qcompiler.ir.verify import Stage
from qcompiler.passes.watch import watched

MODEL = Path(__file__).parents[2] / "models" / "digits_dwconv.onnx"


def float_only() -> Graph:
    """Illegal among integers."""
    x = apply(Input(float_type(1, 4)), name="x")
    return Graph((x,), (apply(Exp(), x, name="y"),), ("y",))


def test_the_road_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QC_DUMP", str(tmp_path / "dump"))
    monkeypatch.setenv("QC_VERIFY", "1")
    program = qcompiler.compile(MODEL, "arm64")
    names = sorted(p.name for p in (tmp_path / "dump").iterdir())
    assert [int(n[:3]) for n in names] == list(range(len(names)))
    parts = [n[4:] for n in names]
    assert parts[0] == "import.txt"
    assert "fold_affine.txt" in parts
    assert parts[-4:] == ["insert_qdq.txt", "lower.txt", "arm64-linux.ll", "arm64-linux.s"]
    assert (tmp_path / "dump" / names[-3]).read_text() == to_text(program.graph)
    assert "define i32 @model_run" in (tmp_path / "dump" / names[-2]).read_text()
    assert "model_run:" in (tmp_path / "dump" / names[-1]).read_text()


def test_nothing_is_written_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QC_DUMP", raising=False)
    monkeypatch.chdir(tmp_path)
    graph = float_only()
    assert watched("some_pass", graph, Stage.integer) is graph
    assert not list(tmp_path.iterdir())


def test_verification_names_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QC_VERIFY", "1")
    with pytest.raises(ProofError, match="after pass some_pass: "):
        watched("some_pass", float_only(), Stage.integer)
