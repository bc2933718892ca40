"""Compiles trained ONNX networks to integer-only programs with the same bits on every target.

The public names are loaded when first used, so that `import qcompiler.runtime` needs numpy and nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .errors import ModelError, ProofError, QCompilerError, UnsupportedModel, UsageError

if TYPE_CHECKING:
    from .api import Program, compile
    from .runtime import load

__version__ = "0.1.0"
__all__ = ["ModelError", "Program", "ProofError", "QCompilerError", "UnsupportedModel", "UsageError", "__version__", "compile", "load"]

_HOME = {"Program": "api", "compile": "api", "load": "runtime"}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
