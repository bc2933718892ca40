"""ONNX to IR."""

from qcompiler.frontend.importer import import_model
from qcompiler.frontend.inputs import input_shapes

__all__ = ["import_model", "input_shapes"]
