"""From a module of kernels to optimized code: object, assembly, or in-process for tests and measurement.

Kernels are explicit, so few passes run: no vectorizer, no unroller, and nothing that recognizes loops as calls of memcpy.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import llvmlite.binding as llvm

from .target import Target

PASSES = ("sroa", "instruction_combine", "simplify_cfg", "new_gvn", "instruction_combine", "dead_code_elimination", "global_dead_code_eliminate")


def optimized(module: Any, target: Target, machine: Any) -> Any:
    """LLVM's verified and optimized module of a `llvmlite.ir.Module`."""
    return optimized_text(module_text(module, target), machine)


def optimized_text(text: str, machine: Any) -> Any:
    """The same of the module's text."""
    parsed = llvm.parse_assembly(text)
    parsed.verify()
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=2))
    passes = llvm.create_new_module_pass_manager()
    for name in PASSES:
        getattr(passes, f"add_{name}_pass")()
    passes.run(parsed, builder)
    return parsed


def module_text(module: Any, target: Target) -> str:
    """The LLVM text of a `llvmlite.ir.Module`, told its target."""
    if not target.by_meaning:
        module.triple = target.triple
    return str(module)


# Code generation rewrites the module it is given, so each emission works on a copy: object and text are of the same code.


def emit_object(module: Any, target: Target) -> bytes:
    """The relocatable object of an optimized module."""
    return bytes(target.machine().emit_object(module.clone()))


def emit_assembly(module: Any, target: Target) -> str:
    """The assembler text of an optimized module."""
    return str(target.machine().emit_assembly(module.clone()))


@dataclass(frozen=True, eq=False)
class Jitted:
    """Machine code in this process."""

    engine: Any
    name: str

    def __call__(self, *pointers: int) -> int:
        """Call the function with addresses."""
        kind = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_void_p] * len(pointers))
        return int(kind(self.engine.get_function_address(self.name))(*pointers))


def jit(module: Any, target: Target, names: Sequence[str]) -> list[Jitted]:
    """The named functions, ready to be called."""
    machine = target.machine(jit=True)
    engine = llvm.create_mcjit_compiler(optimized(module, target, machine), machine)
    engine.finalize_object()
    return [Jitted(engine, n) for n in names]
