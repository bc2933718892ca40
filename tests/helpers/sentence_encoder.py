"""A small encoder of sentences as BERT's exporters write it: tokens and a mask of free length, learned positions, attention, CLS pooling."""

from __future__ import annotations

import numpy as np
import onnx
from onnx_graphs import Spelled

VOCABULARY, LONGEST, D, HEADS = 60, 48, 32, 4


class Encoder(Spelled):
    """Layers of width `width`."""

    def __init__(self, width: int = D, vocabulary: int = VOCABULARY, layers: int = 1) -> None:
        super().__init__()
        self.width, self.vocabulary, self.layers = width, vocabulary, layers

    def normal(self, *shape: int) -> np.ndarray:
        return self.rng.normal(size=shape).astype(np.float32) / np.float32(shape[0] ** 0.5)

    def projected(self, x: str, n: int, k: int) -> str:
        return self.op("Add", self.op("MatMul", x, self.normal(n, k)), self.normal(k))

    def normalized(self, x: str) -> str:
        scale = self.rng.uniform(0.5, 1.5, self.width).astype(np.float32)
        return self.op("LayerNormalization", x, scale, self.normal(self.width), epsilon=1e-6, axis=-1)

    def split(self, x: str, perm: list[int]) -> str:
        return self.op("Transpose", self.reshape(x, 1, -1, HEADS, self.width // HEADS), perm=perm)

    def attended(self, x: str, hidden: str) -> str:
        d = self.width
        q, k, v = (self.split(self.projected(x, d, d), perm) for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]))
        scores = self.op("Add", self.op("Div", self.op("MatMul", q, k), np.float32((d // HEADS) ** 0.5)), hidden)
        seen = self.op("Transpose", self.op("MatMul", self.op("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
        return self.projected(self.reshape(seen, 1, -1, d), d, d)

    def embedded(self, ids: str) -> str:
        length = self.op("Gather", self.op("Shape", ids), np.array([1]), axis=0)
        positions = self.op("Slice", self.normal(LONGEST, self.width), np.array([0]), length, np.array([0]))
        tokens = self.op("Gather", self.rng.normal(size=(self.vocabulary, self.width)).astype(np.float32), ids)
        return self.normalized(self.op("Add", tokens, positions))

    def built(self) -> onnx.ModelProto:
        ids, mask = (self.input(1, "L", name=name, dtype=np.int64) for name in ("ids", "mask"))
        seen = self.op("Unsqueeze", self.op("Cast", mask, to=onnx.TensorProto.FLOAT), np.array([1, 2]))
        hidden = self.op("Mul", self.op("Sub", np.float32(1), seen), np.float32(-10000))
        x = self.embedded(ids)
        for _ in range(self.layers):
            x = self.normalized(self.op("Add", x, self.attended(x, hidden)))
            inner = self.op("Gelu", self.projected(x, self.width, 4 * self.width))
            x = self.normalized(self.op("Add", x, self.projected(inner, 4 * self.width, self.width)))
        first = self.op("Gather", x, np.array(0), axis=1)
        return self.named(self.op("Identity", x), "hidden", self.op("Tanh", self.projected(first, self.width, 8)), "pooled")

    def cut(self, table: np.ndarray, ids: str, *axes: int) -> str:
        """The first L along `axes`, L the number of tokens."""
        length = self.op("Gather", self.op("Shape", ids), np.array([1] * len(axes)), axis=0)
        return self.op("Slice", table, np.zeros(len(axes), np.int64), length, np.array(axes))

    def turned(self, x: str, ids: str) -> str:
        """Rotary embedding of x [1,H,L,d]: halves change places."""
        half = self.width // HEADS // 2
        angles = np.arange(LONGEST)[:, None] / 10 ** (np.arange(2 * half) % half / half)
        cos, sin = (self.cut(f(angles).astype(np.float32), ids, 0) for f in (np.cos, np.sin))
        first, second = self.op("Split", x, np.array([half, half]), outputs=2, axis=-1)
        other = self.op("Concat", self.op("Neg", second), first, axis=-1)
        return self.op("Add", self.op("Mul", x, cos), self.op("Mul", other, sin))

    def decoder(self) -> onnx.ModelProto:
        """A causal language model with rotary embeddings: ids to logits."""
        d, ids = self.width, self.input(1, "L", name="ids", dtype=np.int64)
        x = self.op("Gather", self.rng.normal(size=(self.vocabulary, d)).astype(np.float32), ids)
        hidden = self.cut(np.triu(np.full((LONGEST, LONGEST), -1e9, np.float32), 1), ids, 0, 1)
        for _ in range(self.layers):
            y = self.normalized(x)
            q, k, v = (self.split(self.op("MatMul", y, self.normal(d, d)), [0, 2, 1, 3]) for _ in range(3))
            products = self.op("MatMul", self.turned(q, ids), self.op("Transpose", self.turned(k, ids), perm=[0, 1, 3, 2]))
            scores = self.op("Add", self.op("Div", products, np.float32((d // HEADS) ** 0.5)), hidden)
            seen = self.op("Transpose", self.op("MatMul", self.op("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
            x = self.op("Add", x, self.op("MatMul", self.reshape(seen, 1, -1, d), self.normal(d, d)))
        return self.model(self.op("MatMul", self.normalized(x), self.normal(d, self.vocabulary)))

    def named(self, x: str, x_name: str, y: str, y_name: str) -> onnx.ModelProto:
        for node in self.nodes:
            node.output[:] = [{x: x_name, y: y_name}.get(o, o) for o in node.output]
        return self.model(x_name, y_name)


def sentences(length: int, count: int = 8, seed: int = 0, vocabulary: int = VOCABULARY) -> list[dict[str, np.ndarray]]:
    """Random tokens, padded with token 0."""
    rng = np.random.default_rng(seed)
    return [padded(rng.integers(1, vocabulary, rng.integers(3, length + 1)), length) for _ in range(count)]


def padded(tokens: np.ndarray, length: int, filler: int = 0) -> dict[str, np.ndarray]:
    """One sentence as inputs."""
    ids, mask = np.full((1, length), filler, np.int64), np.zeros((1, length), np.int64)
    ids[0, : len(tokens)], mask[0, : len(tokens)] = tokens, 1
    return {"ids": ids, "mask": mask}
