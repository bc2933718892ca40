"""The other runtimes' int8 forms of a model, by the recipe that each project documents: `recipe(model, calibration samples, file to write)`.

    onnxruntime          quant_pre_process, quantize_static: Q/DQ, u8 x s8, per channel, as its documentation recommends for x86 with VNNI
    onnxruntime dynamic  quantize_dynamic, which it recommends for transformers; ranges are found at run time, samples are not needed
    OpenVINO             NNCF's post-training quantization, preset mixed

This file imports nothing of the project, so that it also runs where OpenVINO and NNCF are (`pip install 'qcompiler[peers]'`) and the
project is not.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

Samples = Iterable[Mapping[str, Any]]
"""Arrays with a leading dimension of 1, by input name."""


def quantize_onnxruntime(model: Path, samples: Samples, out: Path) -> None:
    """Static, with ranges from `samples`."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc, unused-ignore]
        """The samples, one at a time."""

        def __init__(self) -> None:
            self.rows = iter(samples)

        def get_next(self) -> dict[str, Any] | None:
            row = next(self.rows, None)
            return None if row is None else dict(row)

    with tempfile.TemporaryDirectory() as folder:
        quantize_static(
            prepared(model, folder),
            str(out),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


def quantize_onnxruntime_dynamic(model: Path, samples: Samples, out: Path) -> None:
    """Of what multiplies matrices and looks up tables."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        types = ["MatMul", "Gemm", "Attention", "Gather"]
        quantize_dynamic(prepared(model, folder), str(out), op_types_to_quantize=types, weight_type=QuantType.QInt8)


def prepared(model: Path, folder: str) -> str:
    """The model after onnxruntime's own preparation, as a file in `folder`."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ready = str(Path(folder) / "prepared.onnx")
    quant_pre_process(str(model), ready, skip_symbolic_shape=True)
    return ready


def quantize_openvino(model: Path, samples: Samples, out: Path) -> None:
    """An .xml file with a .bin beside it."""
    import nncf
    import openvino

    rows = [dict(s) for s in samples]
    network = openvino.Core().read_model(model)
    quantized = nncf.quantize(network, nncf.Dataset(rows), preset=nncf.QuantizationPreset.MIXED, subset_size=len(rows))
    openvino.save_model(quantized, out, compress_to_fp16=False)


RECIPES: Mapping[str, Callable[[Path, Samples, Path], None]] = {
    "ort": quantize_onnxruntime,
    "ort-dynamic": quantize_onnxruntime_dynamic,
    "openvino": quantize_openvino,
}
