"""Quantized ONNX of trained networks: it loads with the defaults, and its answers are near the compiled program's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from qcompiler.api import quantize_model
from qcompiler.backends import reference
from qcompiler.backends.onnx import export_qdq, export_qoperator
from qcompiler.backends.onnx.bound import saturates

ZOO = Path(__file__).parents[3] / "shared" / "zoo"
LEAST = 20.0
"""dB. Integer attention and requantization round otherwise than floats do, and differences add up over the layers."""


@pytest.mark.parametrize("export", [export_qdq, export_qoperator])
@pytest.mark.skipif(saturates(), reason="onnxruntime's int8 kernels saturate on x86 without VNNI")
def test_a_language_model(export: object) -> None:
    if not (path := ZOO / "stories260k_lm.onnx").exists():
        pytest.skip(f"{path} is not on this machine")
    tokens = np.load(ZOO / "tinystories_calib_tok512_len256.npz")["tokens"].astype(np.int64)
    graphs = quantize_model(path, ({"tokens": t[None]} for t in tokens[:8])).graphs
    model = export(graphs.exchange_graph)  # type: ignore[operator]
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {"tokens": tokens[9:10]}
    (ours,) = reference.run(graphs.integer_graph, feeds).values()
    (theirs,) = session.run(None, feeds)
    assert 10 * np.log10((ours**2).sum() / ((ours - theirs) ** 2).sum()) > LEAST
