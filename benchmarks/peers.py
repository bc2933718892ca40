"""The other runtimes' int8 forms of a model, as files, made in the environment that has them.

    python benchmarks/peers.py ort MODEL.onnx DATA.npz OUT.onnx
    python benchmarks/peers.py ort-dynamic MODEL.onnx DATA.npz OUT.onnx
    python benchmarks/peers.py openvino MODEL.onnx DATA.npz OUT.xml

DATA.npz holds every input under its name, one sample per row. The recipes are those of `qcompile compare --peers`, read as a file: this
interpreter need not have the project.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

RECIPES = Path(__file__).resolve().parents[1] / "qcompiler" / "cli" / "recipes.py"


def samples(data: Path) -> Iterator[dict[str, Any]]:
    """One feed after the other."""
    archive = np.load(data)
    inputs = {name: archive[name] for name in archive.files}
    for rows in zip(*inputs.values()):
        yield {name: row[None] for name, row in zip(inputs, rows)}


def recipes() -> ModuleType:
    """The module in the file `RECIPES`."""
    spec = importlib.util.spec_from_file_location("recipes", RECIPES)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    recipe, model, data, out = sys.argv[1:]
    recipes().RECIPES[recipe](Path(model), samples(Path(data)), Path(out))
