"""The other runtimes' int8 forms of a model, by the recipe that each project documents, on the same calibration inputs.

    python -m benchmarks.peers ort MODEL.onnx DATA.npz OUT.onnx           quant_pre_process, quantize_static: QDQ, u8 x s8, per channel
    python -m benchmarks.peers ort-dynamic MODEL.onnx DATA.npz OUT.onnx   quantize_dynamic, which its documentation recommends for transformers
    python -m benchmarks.peers openvino MODEL.onnx DATA.npz OUT.xml       NNCF post-training quantization, preset mixed

DATA.npz holds every input under its name, one sample per row. This file imports nothing of the project, so that it also runs in an
environment that has OpenVINO and NNCF (`pip install 'qcompiler[peers]'`) and not the project.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np


def samples(data: Path) -> Iterator[dict[str, Any]]:
    """One feed after the other."""
    archive = np.load(data)
    inputs = {name: archive[name] for name in archive.files}
    for rows in zip(*inputs.values()):
        yield {name: row[None] for name, row in zip(inputs, rows)}


def quantize_ort(model: Path, data: Path, out: Path) -> None:
    """onnxruntime's static quantization, as its documentation recommends for x86 with VNNI."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc, unused-ignore]
        """The samples, one at a time."""

        def __init__(self) -> None:
            self.rows = samples(data)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.rows, None)

    with tempfile.TemporaryDirectory() as folder:
        prepared = str(Path(folder) / "prepared.onnx")
        quant_pre_process(str(model), prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            str(out),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


def quantize_ort_dynamic(model: Path, data: Path, out: Path) -> None:
    """onnxruntime's quantization with ranges found at run time; `data` is not needed."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        prepared = str(Path(folder) / "prepared.onnx")
        quant_pre_process(str(model), prepared, skip_symbolic_shape=True)
        quantize_dynamic(prepared, str(out), op_types_to_quantize=["MatMul", "Gemm", "Attention", "Gather"], weight_type=QuantType.QInt8)


def quantize_openvino(model: Path, data: Path, out: Path) -> None:
    """NNCF's post-training quantization."""
    import nncf
    import openvino

    rows = list(samples(data))
    dataset = nncf.Dataset(rows)
    quantized = nncf.quantize(openvino.Core().read_model(model), dataset, preset=nncf.QuantizationPreset.MIXED, subset_size=len(rows))
    openvino.save_model(quantized, out, compress_to_fp16=False)


RECIPES: dict[str, Callable[[Path, Path, Path], None]] = {"ort": quantize_ort, "ort-dynamic": quantize_ort_dynamic, "openvino": quantize_openvino}

if __name__ == "__main__":
    recipe, *files = sys.argv[1:]
    RECIPES[recipe](*map(Path, files))
