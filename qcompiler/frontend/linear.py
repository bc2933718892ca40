"""Dense layers and matrix products."""

from __future__ import annotations

from qcompiler.frontend.node import Importers, Node
from qcompiler.ir import pointwise as pw
from qcompiler.ir.graph import Value
from qcompiler.ir.ops import MatMul, Transpose

IMPORTERS = Importers()


@IMPORTERS.register("MatMul")
def matmul(node: Node, a: Value, b: Value) -> Value:
    """numpy's matmul."""
    return node.emit(MatMul(), a, b)


@IMPORTERS.register("Gemm")
def gemm(node: Node, a: Value, b: Value, c: Value | None = None) -> Value:
    """alpha * A' B' + beta * C; the factors are folded into B and C."""
    if a.type.rank != 2 or b.type.rank != 2:
        raise ValueError(f"expected two matrices, found {a.type} and {b.type}")
    left = node.emit(Transpose((1, 0)), a) if node.integer("transA") else a
    right = node.emit(Transpose((1, 0)), b) if node.integer("transB") else b
    product = node.emit(MatMul(), left, _scaled(node, right, node.number("alpha")))
    return product if c is None else node.emit(pw.Add(), product, _scaled(node, c, node.number("beta")))


def _scaled(node: Node, v: Value, factor: float) -> Value:
    return v if factor == 1 else node.emit(pw.Mul(), v, node.constant(factor, v))
