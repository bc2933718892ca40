"""`--require "accuracy>=.82 and latency<5ms"`: a condition on the figures of a row, read by a small parser over Python's `ast`, without `eval`.

condition   comparisons of sums of products, joined by and, or, not
numbers     with a unit: 5ms, 300us, 2s (milliseconds), 512KB, 2MB (bytes), 82% (a fraction)
names       those of the figures; a name whose figure is not known makes the answer unknown
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from qcompiler.errors import UsageError

Figures = Mapping[str, float | None]
UNITS = {"ms": 1.0, "us": 1e-3, "s": 1e3, "B": 1.0, "KB": 1024.0, "MB": float(1 << 20), "%": 0.01}
_NUMBER = re.compile(r"(?<![\w.])(\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)\s*(ms|us|s|KB|MB|B|%)(?!\w)")
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
LONGEST = 1000


class Unknown(Exception):
    """A figure that is not known is asked for."""


@dataclass(frozen=True)
class Requirement:
    """A condition whose names are known to be figures."""

    text: str
    _tree: ast.expr

    @classmethod
    def parse(cls, text: str, names: set[str]) -> Requirement:
        """UsageError where `text` is no condition on `names`."""
        try:
            if len(text) > LONGEST:
                raise SyntaxError("it is too long")
            tree = ast.parse(_NUMBER.sub(lambda m: repr(float(m[1]) * UNITS[m[2]]), text.strip()), mode="eval").body
            _check(tree, names)
            if not isinstance(tree, (ast.BoolOp, ast.Compare)) and not (isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.Not)):
                raise SyntaxError("nothing is compared")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as problem:
            example = "accuracy>=.82 and latency<5ms"
            raise UsageError(f"cannot read --require {text!r} ({problem}); write it as {example!r}, with {', '.join(sorted(names))}") from None
        return cls(text, tree)

    def holds(self, figures: Figures) -> bool | None:
        """Whether it does of these figures; None where that depends on one that is not known."""
        try:
            return bool(_value(self._tree, figures))
        except Unknown:
            return None
        except ZeroDivisionError:
            return False


def _check(tree: ast.expr, names: set[str]) -> None:
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) if name not in names:
                raise SyntaxError(f"'{name}' is no figure")
            case ast.Constant(value=value) if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise SyntaxError(f"{value!r} is no number")
            case ast.Name() | ast.Constant() | ast.BoolOp() | ast.And() | ast.Or() | ast.Compare() | ast.BinOp() | ast.expr_context():
                pass
            case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.UAdd()) | ast.Not() | ast.USub() | ast.UAdd():
                pass
            case _ if type(node) in _COMPARE or type(node) in _ARITHMETIC:
                pass
            case _:
                raise SyntaxError(f"{type(node).__name__} is not understood")


def _value(node: ast.expr, figures: Figures) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            if (found := figures.get(name)) is None:
                raise Unknown(name)
            return found
        case ast.UnaryOp(op=op, operand=operand):
            value = _value(operand, figures)
            return (not value) if isinstance(op, ast.Not) else -value if isinstance(op, ast.USub) else value
        case ast.BinOp(left=left, op=op, right=right):
            return _ARITHMETIC[type(op)](_value(left, figures), _value(right, figures))
        case ast.Compare(left=left, ops=ops, comparators=others):
            values = [_value(n, figures) for n in (left, *others)]
            return all(_COMPARE[type(op)](a, b) for op, a, b in zip(ops, values, values[1:]))
        case ast.BoolOp(op=op, values=parts):
            return _joined([_maybe(p, figures) for p in parts], isinstance(op, ast.And))
    raise Unknown(ast.dump(node))


def _maybe(node: ast.expr, figures: Figures) -> bool | None:
    try:
        return bool(_value(node, figures))
    except Unknown:
        return None


def _joined(parts: list[bool | None], all_of: bool) -> bool:
    """And, or of what may be unknown: a single False decides the one, a single True the other."""
    if (not all_of) in parts:
        return not all_of
    if None in parts:
        raise Unknown("a part")
    return all_of
