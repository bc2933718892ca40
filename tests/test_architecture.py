"""Imports point one way, the runtime stands alone, and files and functions stay small."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).parents[1]
LINKED = ("passes", "backends", "runtime")

# A part may import those of its own rank and below.
RANK = {"errors": 0, "precision": 1, "ir": 1, "numerics": 1, "runtime": 2, "frontend": 2, "passes": 2, "profiles": 2}
RANK |= {"backends": 3, "report": 4, "profile": 4, "latency": 4, "tuning": 4, "exchange": 4, "api": 4, "cli": 5}

DEPENDENCIES = {"PIL", "capstone", "click", "elftools", "google", "llvmlite", "networkx", "numpy", "onnx", "onnxruntime", "rich", "scipy"}
DEPENDENCIES |= {"tomli", "unicorn"}
OPTIONAL = {"array_api_compat", "nncf", "openvino", "torch"}  # extras: imported inside the function that needs them


def sources() -> list[Path]:
    own = (p for p in (ROOT / "qcompiler").rglob("*.py") if p.relative_to(ROOT / "qcompiler").parts[0] not in LINKED)
    return sorted([*own, *(p for folder in LINKED for p in (ROOT / folder).rglob("*.py"))])


def module_of(path: Path) -> tuple[str, ...]:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts if parts[0] == "qcompiler" else ("qcompiler", *parts)


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def package_of(path: Path) -> tuple[str, ...]:
    return module_of(path)[:-1]


def imports(path: Path, nodes: Iterator[ast.AST] | None = None) -> Iterator[tuple[str, ...]]:
    """The absolute dotted path of everything that a file imports, `from x import y` as x.y."""
    for node in nodes or ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (tuple(a.name.split(".")) for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = package_of(path)
            base = package[: len(package) - node.level + 1] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            yield from ((*base, a.name) for a in node.names)


def part(module: tuple[str, ...]) -> str | None:
    return module[1] if module[0] == "qcompiler" and len(module) > 1 and module[1] in RANK else None


def test_every_source_belongs_to_a_part() -> None:
    strays = [p for p in sources() if part(module_of(p)) is None and p != ROOT / "qcompiler/__init__.py"]
    assert not strays, f"give these a place in RANK: {strays}"


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    here = part(module_of(path))
    if here is None:
        return
    for module in imports(path):
        there = part(module)
        assert there is None or RANK[there] <= RANK[here], f"{here} must not import {'.'.join(module)}"
        assert here != "runtime" or there in (None, "runtime"), f"the runtime must not import {'.'.join(module)}"


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_only_declared_packages_are_imported(path: Path) -> None:
    allowed = {"numpy"} if part(module_of(path)) == "runtime" else DEPENDENCIES | OPTIONAL
    foreign = {m[0] for m in imports(path)} - sys.stdlib_module_names - {"qcompiler"}
    assert foreign <= allowed, f"{sorted(foreign - allowed)} not declared in pyproject.toml, or not allowed here"
    at_import = {m[0] for m in imports(path, iter(parsed(path).body))}
    assert not at_import & OPTIONAL, f"import {sorted(at_import & OPTIONAL)} inside the function that needs it"


def test_declared_packages_are_those_of_pyproject() -> None:
    spelled = {"PIL": "Pillow", "elftools": "pyelftools", "google": "protobuf"}
    text = (ROOT / "pyproject.toml").read_text()
    declared = text.split("dependencies = [")[1].split("]")[0]
    missing = [d for d in DEPENDENCIES if f'"{spelled.get(d, d)}>=' not in declared]
    assert not missing
    assert declared.count(">=") == len(DEPENDENCIES)


def test_runtime_loads_nothing_but_numpy() -> None:
    code = (
        "import sys, numpy; before = set(sys.modules); import qcompiler.runtime; "
        "print(*{m.split('.')[0] for m in set(sys.modules) - before} - sys.stdlib_module_names - {'qcompiler', 'numpy'}); "
        "print(*[m for m in sys.modules if m.startswith('qcompiler.') and m.split('.')[1] not in ('runtime', 'errors')])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert found.split() == []


def test_import_of_the_package_is_light() -> None:
    code = "import sys, qcompiler; print(*{'onnx', 'onnxruntime', 'llvmlite', 'numpy', 'scipy', 'click', 'rich'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout.split() == []


def test_names_and_sizes_of_files() -> None:
    assert not [p for p in sources() if p.stem in ("utils", "util", "helpers", "misc", "common")]
    lengths = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in sources()}
    assert not {name: n for name, n in lengths.items() if n > 500}, "split these files"


def function_lengths() -> dict[str, int]:
    functions = ((p, n) for p in sources() for n in ast.walk(parsed(p)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)))
    return {f"{p.relative_to(ROOT)}:{n.lineno} {n.name}": (n.end_lineno or n.lineno) - n.lineno + 1 for p, n in functions}


def test_functions_stay_small() -> None:
    lengths = function_lengths()
    long = {name: n for name, n in lengths.items() if n > 50}
    assert median(lengths.values()) < 8
    assert len(long) <= len(lengths) / 100, f"over 50 lines: {long}"
