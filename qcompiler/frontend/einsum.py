"""Einsum as transpositions, products of matrices and sums."""

from __future__ import annotations

from math import prod

from qcompiler.frontend.node import Importers, Node, Unsupported
from qcompiler.ir.graph import Value
from qcompiler.ir.ops import MatMul, Reduce, Reduction, Reshape, Transpose

IMPORTERS = Importers()

_ELLIPSIS = "0123456789"
"""Stand for the axes of an ellipsis, which line up at their right end."""


@IMPORTERS.register("Einsum")
def einsum(node: Node, *operands: Value) -> Value:
    """Operands multiplied pairwise, the first two first; axes that the result lacks are summed as soon as nothing else has them."""
    terms, result = _parsed(node.text("equation").replace(" ", ""), operands)
    x, axes = operands[0], terms[0]
    for i, y in enumerate(operands[1:], 1):
        later = set(result).union(*terms[i + 1 :])
        x, axes = _product(node, (x, axes), (y, terms[i]), later)
    x, axes = _summed(node, x, axes, set(result))
    return _ordered(node, x, axes, result)


def _parsed(equation: str, operands: tuple[Value, ...]) -> tuple[list[str], str]:
    """The axes of each operand and of the result, one letter each."""
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if len(terms) != len(operands):
        raise ValueError(f"equation '{equation}' has {len(terms)} terms for {len(operands)} operands")
    dots = [len(x.shape) - len(t.replace("...", "")) if "..." in t else 0 for t, x in zip(terms, operands)]
    full = [t.replace("...", _ELLIPSIS[10 - n :] if n else "") for t, n in zip(terms, dots)]
    every = _ELLIPSIS[10 - max(dots) :] if max(dots) else ""
    result = right.replace("...", every) if arrow else every + "".join(sorted(c for c in set("".join(full)) if c.isalpha() and left.count(c) == 1))
    for term, x in zip(full, operands):
        if len(term) != len(x.shape):
            raise ValueError(f"term '{term}' of '{equation}' does not fit {x.type}")
        if len(set(term)) < len(term):
            raise Unsupported(f"takes a diagonal: '{equation}'")
    return full, result


def _product(node: Node, a: tuple[Value, str], b: tuple[Value, str], later: set[str]) -> tuple[Value, str]:
    """The product of two operands: shared axes that are needed later are batches, the others are summed."""
    (x, p), (y, q) = a, b
    x, p = _summed(node, x, p, later | set(q))
    y, q = _summed(node, y, q, later | set(p))
    sizes = dict(zip(p, x.shape)) | dict(zip(q, y.shape))
    if any(x.shape[p.index(c)] != y.shape[q.index(c)] for c in p if c in q):
        raise Unsupported(f"broadcasts an axis of {x.type} and {y.type}")
    batch, summed = ("".join(c for c in p if c in q and (c in later) is kept) for kept in (True, False))
    rows, columns = "".join(c for c in p if c not in q), "".join(c for c in q if c not in p)
    left = _grouped(node, _ordered(node, x, p, batch + rows + summed), [*batch, rows, summed], sizes)
    right = _grouped(node, _ordered(node, y, q, batch + summed + columns), [*batch, summed, columns], sizes)
    z = node.emit(MatMul(), left, right)
    axes = batch + rows + columns
    return _grouped(node, z, list(axes), sizes), axes


def _summed(node: Node, x: Value, axes: str, needed: set[str]) -> tuple[Value, str]:
    gone = tuple(i for i, c in enumerate(axes) if c not in needed)
    return (node.emit(Reduce(Reduction.sum, gone, False), x) if gone else x), "".join(c for c in axes if c in needed)


def _ordered(node: Node, x: Value, axes: str, wanted: str) -> Value:
    if set(axes) != set(wanted):
        raise ValueError(f"the result has axes '{wanted}', the operands '{axes}'")
    perm = tuple(axes.index(c) for c in wanted)
    return x if perm == tuple(range(len(perm))) else node.emit(Transpose(perm), x)


def _grouped(node: Node, x: Value, groups: list[str], sizes: dict[str, int]) -> Value:
    shape = tuple(prod(sizes[c] for c in g) for g in groups)
    return x if x.shape == shape else node.emit(Reshape(shape), x)
