"""Small transformers of many kinds, as their exporters write them, with random weights: nobody tuned for them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from net import Net, network
from onnx import TensorProto

LOWEST = float(np.finfo(np.float32).min)


class TransformerNet(Net):
    """Adds what transformers are made of; activations are [1, positions, channels]."""

    def linear(self, x: str, n: int, k: int, bias: bool = True, gain: float = 1.0) -> str:
        """Channels n to k, as MatMul and Add."""
        y = self.op("MatMul", x, self.const(self.weights((k, n), gain).T))
        return self.op("Add", self.const(self.rng.normal(0, 0.1, k)), y) if bias else y

    def table(self, rows: int, c: int, std: float = 1.0) -> str:
        return self.const(self.rng.normal(0, std, (rows, c)) * self.rng.lognormal(0, 0.3, c))

    def layer_norm(self, x: str, c: int) -> str:
        return self.op("LayerNormalization", x, *self._affine(c), axis=-1, epsilon=1e-5)

    def layer_norm_decomposed(self, x: str, c: int) -> str:
        """As torch writes it before opset 17."""
        centered = self.op("Sub", x, self.op("ReduceMean", x, axes=[-1]))
        variance = self.op("ReduceMean", self.op("Pow", centered, self.const(2.0)), axes=[-1])
        y = self.op("Div", centered, self.op("Sqrt", self.op("Add", variance, self.const(1e-5))))
        gamma, beta = self._affine(c)
        return self.op("Add", self.op("Mul", y, gamma), beta)

    def _affine(self, c: int) -> tuple[str, str]:
        return self.const(self.rng.lognormal(0, 0.5, c)), self.const(self.rng.normal(0, 0.3, c))

    def rms_norm(self, x: str, c: int) -> str:
        mean = self.op("ReduceMean", self.op("Pow", x, self.const(2.0)), self.const([-1], np.int64), keepdims=1)
        y = self.op("Mul", x, self.op("Div", self.const(1.0), self.op("Sqrt", self.op("Add", mean, self.const(1e-6)))))
        return self.op("Mul", self.const(self.rng.lognormal(0, 0.5, c)), y)

    def gelu(self, x: str) -> str:
        """By the error function."""
        y = self.op("Add", self.op("Erf", self.op("Div", x, self.const(np.sqrt(2)))), self.const(1.0))
        return self.op("Mul", self.op("Mul", x, y), self.const(0.5))

    def gelu_tanh(self, x: str) -> str:
        """As GPT-2 has it."""
        cube = self.op("Mul", self.const(0.044715), self.op("Pow", x, self.const(3.0)))
        y = self.op("Tanh", self.op("Mul", self.const(np.sqrt(2 / np.pi)), self.op("Add", x, cube)))
        return self.op("Mul", self.op("Mul", self.const(0.5), x), self.op("Add", y, self.const(1.0)))

    def heads(self, x: str, n: int, h: int, d: int) -> str:
        """[1,N,H*D] to [1,H,N,D]."""
        return self.op("Transpose", self.reshape(x, 1, n, h, d), perm=[0, 2, 1, 3])

    def merged(self, x: str, n: int, c: int) -> str:
        return self.reshape(self.op("Transpose", x, perm=[0, 2, 1, 3]), 1, n, c)

    def logits(self, q: str, k: str, d: int) -> str:
        """q k^T / sqrt(d), a few units of which the softmax makes a choice."""
        y = self.op("MatMul", q, self.op("Transpose", k, perm=[0, 1, 3, 2]))
        return self.op("Div", y, self.const(d**0.5))

    def attend(self, logits: str, v: str) -> str:
        return self.op("MatMul", self.op("Softmax", logits, axis=-1), v)

    def attention(self, x: str, memory: str, sizes: tuple[int, int], h: int, d: int, mask: str = "") -> str:
        """Of N positions over M, `sizes`, with dense layers of their own for queries, keys and values; `mask` is added."""
        (n, m), c = sizes, h * d
        q, k, v = (self.heads(self.linear(s, c, c, gain=1.5), count, h, d) for s, count in ((x, n), (memory, m), (memory, m)))
        logits = self.logits(q, k, d)
        return self.linear(self.merged(self.attend(self.op("Add", logits, mask) if mask else logits, v), n, c), c, c)

    def mlp(self, x: str, c: int, hidden: int) -> str:
        return self.linear(self.gelu(self.linear(x, c, hidden)), hidden, c)


# --- images ---


def _fused_attention(n: TransformerNet, x: str, positions: int, h: int, d: int) -> str:
    """One dense layer for queries, keys and values, split as timm does."""
    c = h * d
    qkv = n.reshape(n.linear(x, c, 3 * c, gain=1.5), 1, positions, 3, h, d)
    qkv = n.op("Transpose", qkv, perm=[2, 0, 3, 1, 4])
    q, k, v = (n.op("Gather", qkv, n.const(i, np.int64), axis=0) for i in range(3))
    q = n.op("Mul", q, n.const(d**-0.5))
    y = n.attend(n.op("MatMul", q, n.op("Transpose", k, perm=[0, 1, 3, 2])), v)
    return n.linear(n.merged(y, positions, c), c, c)


@network
def vit() -> onnx.ModelProto:
    """Patches, a class token, normalization before attention and before the dense layers."""
    n, (h, d), count = TransformerNet(1, 3, 32, 32, opset=17), (3, 16), 17
    c = h * d
    w, b = n.const(n.weights((c, 3, 8, 8), 1.0)), n.const(n.rng.normal(0, 0.1, c))
    x = n.op("Transpose", n.reshape(n.op("Conv", n.x, w, b, kernel_shape=[8, 8], strides=[8, 8]), 1, c, 16), perm=[0, 2, 1])
    x = n.op("Concat", n.const(n.rng.normal(0, 1, (1, 1, c))), x, axis=1)
    x = n.op("Add", x, n.const(n.rng.normal(0, 0.3, (1, count, c))))
    for _ in range(2):
        x = n.op("Add", x, _fused_attention(n, n.layer_norm(x, c), count, h, d))
        x = n.op("Add", x, n.mlp(n.layer_norm(x, c), c, 2 * c))
    token = n.op("Gather", n.layer_norm(x, c), n.const(0, np.int64), axis=1)
    return n.model(n.op("Gemm", token, n.const(n.weights((10, c), 1.0)), n.const(n.rng.normal(0, 0.1, 10)), transB=1))


def _windows(n: TransformerNet, x: str, size: int, w: int, c: int) -> str:
    """[1,S,S,C] to [windows, w*w, C]."""
    x = n.op("Transpose", n.reshape(x, 1, size // w, w, size // w, w, c), perm=[0, 1, 3, 2, 4, 5])
    return n.reshape(x, -1, w * w, c)


def _rolled(n: TransformerNet, x: str, by: int) -> str:
    """torch.roll by -by along both axes."""
    for axis in (1, 2):
        parts = [n.op("Slice", x, *(n.const([i], np.int64) for i in (a, b, axis))) for a, b in ((by, 2**62), (0, by))]
        x = n.op("Concat", *parts, axis=axis)
    return x


def _shift_mask(size: int, w: int) -> np.ndarray:
    """-100 between positions of one window that were no neighbours before the shift by w / 2: [windows, w*w, w*w]."""
    area = np.digitize(np.arange(size), [size - w, size - w // 2])
    areas = (area[:, None] * 3 + area).reshape(size // w, w, size // w, w).transpose(0, 2, 1, 3).reshape(-1, w * w)
    return np.where(areas[:, :, None] != areas[:, None, :], -100.0, 0.0)


def _window_attention(n: TransformerNet, x: str, windows: int, m: int, h: int, d: int, mask: np.ndarray | None) -> str:
    c = h * d
    qkv = n.op("Transpose", n.reshape(n.linear(x, c, 3 * c, gain=1.5), windows, m, 3, h, d), perm=[2, 0, 3, 1, 4])
    parts = (n.op("Gather", qkv, n.const(i, np.int64), axis=0) for i in range(3))
    q, k, v = parts
    y = n.op("MatMul", n.op("Mul", q, n.const(d**-0.5)), n.op("Transpose", k, perm=[0, 1, 3, 2]))
    y = n.op("Add", y, n.const(n.rng.normal(0, 0.5, (1, h, m, m))))
    if mask is not None:
        y = n.op("Add", n.reshape(y, 1, windows, h, m, m), n.const(mask[None, :, None]))
        y = n.reshape(y, -1, h, m, m)
    y = n.op("Transpose", n.attend(y, v), perm=[0, 2, 1, 3])
    return n.linear(n.reshape(y, windows, m, c), c, c)


@network
def swin() -> onnx.ModelProto:
    """Attention in windows with relative biases, every other time shifted and masked; patches merged between stages."""
    n, size, w, h, d = TransformerNet(1, 3, 32, 32, opset=17), 8, 4, 2, 16
    c = h * d
    x = n.op("Conv", n.x, n.const(n.weights((c, 3, 4, 4), 1.0)), n.const(n.rng.normal(0, 0.1, c)), kernel_shape=[4, 4], strides=[4, 4])
    x = n.layer_norm(n.op("Transpose", n.reshape(x, 1, c, -1), perm=[0, 2, 1]), c)
    for shift in (0, w // 2):
        y = n.reshape(n.layer_norm(x, c), 1, size, size, c)
        y = _windows(n, _rolled(n, y, shift) if shift else y, size, w, c)
        y = _window_attention(n, y, (size // w) ** 2, w * w, h, d, _shift_mask(size, w) if shift else None)
        y = n.op("Transpose", n.reshape(y, 1, size // w, size // w, w, w, c), perm=[0, 1, 3, 2, 4, 5])
        y = n.reshape(y, 1, size, size, c)
        y = n.reshape(_rolled(n, y, size - shift) if shift else y, 1, size * size, c)
        x = n.op("Add", x, y)
        x = n.op("Add", x, n.mlp(n.layer_norm(x, c), c, 2 * c))
    x = n.reshape(x, 1, size, size, c)
    ends = n.const([2**62, 2**62], np.int64), n.const([1, 2], np.int64), n.const([2, 2], np.int64)
    parts = [n.op("Slice", x, n.const(start, np.int64), *ends) for start in ([0, 0], [1, 0], [0, 1], [1, 1])]
    x = n.layer_norm(n.reshape(n.op("Concat", *parts, axis=-1), 1, -1, 4 * c), 4 * c)
    x = n.layer_norm(n.linear(x, 4 * c, 2 * c, bias=False), 2 * c)
    x = n.op("ReduceMean", x, axes=[1], keepdims=0)
    return n.model(n.op("Gemm", x, n.const(n.weights((10, 2 * c), 1.0)), n.const(n.rng.normal(0, 0.1, 10)), transB=1))


@network
def convnext() -> onnx.ModelProto:
    """7x7 depthwise convolutions, normalization over channels between transpositions, layer scale."""
    n = TransformerNet(1, 3, 32, 32, opset=20)

    def norm_first(x: str, c: int) -> str:
        return n.op("Transpose", n.layer_norm(n.op("Transpose", x, perm=[0, 2, 3, 1]), c), perm=[0, 3, 1, 2])

    def conv(x: str, c: int, out: int, k: int) -> str:
        w, b = n.const(n.weights((out, c, k, k), 1.0)), n.const(n.rng.normal(0, 0.1, out))
        return n.op("Conv", x, w, b, channels=out, kernel_shape=[k, k], strides=[k, k])

    def block(x: str, c: int) -> str:
        y = n.op("Transpose", n.conv(x, c, 7, groups=c, gain=1.0), perm=[0, 2, 3, 1])
        y = n.linear(n.op("Gelu", n.linear(n.layer_norm(y, c), c, 4 * c)), 4 * c, c)
        y = n.op("Mul", n.const(n.rng.lognormal(-1, 0.5, c)), y)
        return n.op("Add", x, n.op("Transpose", y, perm=[0, 3, 1, 2]))

    x = norm_first(conv(n.x, 3, 24, 4), 24)
    n.c[x] = 24
    for _ in range(2):
        x = block(x, 24)
        n.c[x] = 24
    x = conv(norm_first(x, 24), 24, 48, 2)
    n.c[x] = 48
    x = n.op("Flatten", n.op("GlobalAveragePool", block(x, 48)))
    return n.model(n.op("Gemm", n.layer_norm(x, 48), n.const(n.weights((10, 48), 1.0)), n.const(n.rng.normal(0, 0.1, 10)), transB=1))


@network
def text_recogniser() -> onnx.ModelProto:
    """Convolutions with hard-swish, then attention along the line with SiLU, Softmax over characters."""
    n, (h, d), count = TransformerNet(1, 1, 32, 64, opset=14), (4, 12), 16
    c = h * d
    x = n.op("HardSwish", n.conv_bn(n.x, 16, act=None, stride=2))
    x = n.op("HardSwish", n.conv_bn(x, 32, act=None, stride=2))
    x = n.op("HardSwish", n.conv_bn(n.conv_bn(x, 32, act=None, groups=32), c, 1, None))
    x = n.op("AveragePool", x, kernel_shape=[8, 1], strides=[8, 1])
    x = n.op("Transpose", n.op("Squeeze", x, n.const([2], np.int64)), perm=[0, 2, 1])
    for _ in range(2):
        y = n.layer_norm_decomposed(x, c)
        x = n.op("Add", x, n.attention(y, y, (count, count), h, d))
        y = n.linear(n.layer_norm_decomposed(x, c), c, 2 * c)
        x = n.op("Add", x, n.linear(n.silu(y), 2 * c, c))
    return n.model(n.op("Softmax", n.linear(n.layer_norm_decomposed(x, c), c, 30, gain=4.0), axis=2))


# --- text ---


def _encoder(n: TransformerNet, ids: str, count: int, c: int, rows: int) -> str:
    """Tokens, kinds and positions, normalized."""
    x = n.op("Gather", n.table(rows, c), ids)
    x = n.op("Add", x, n.op("Gather", n.table(2, c, 0.3), n.const(np.zeros((1, count)), np.int64)))
    return n.layer_norm_decomposed(n.op("Add", x, n.op("Gather", n.table(count, c, 0.3), n.const(np.arange(count)[None], np.int64))), c)


def _post_norm(n: TransformerNet, x: str, attended: str, c: int) -> str:
    x = n.layer_norm_decomposed(n.op("Add", attended, x), c)
    return n.layer_norm_decomposed(n.op("Add", n.mlp(x, c, 2 * c), x), c)


@network
def bert() -> onnx.ModelProto:
    """Normalization after the additions, a mask of integers that becomes a bias, and the mean over what it shows, normalized."""
    n, count, h, d = TransformerNet(opset=14), 12, 3, 16
    c, ids, mask = h * d, n.ids(count, 60), n.mask(count)
    x = _encoder(n, ids, count, c, 60)
    seen = n.op("Cast", n.op("Unsqueeze", n.op("Unsqueeze", mask, n.const([1], np.int64)), n.const([2], np.int64)), to=TensorProto.FLOAT)
    bias = n.op("Mul", n.op("Sub", n.const(1.0), seen), n.const(LOWEST))
    for _ in range(2):
        x = _post_norm(n, x, n.attention(x, x, (count, count), h, d, bias), c)
    shown = n.op("Cast", n.op("Unsqueeze", mask, n.const([2], np.int64)), to=TensorProto.FLOAT)
    shown = n.op("Expand", shown, n.const([1, count, c], np.int64))
    total = n.op("ReduceSum", n.op("Mul", x, shown), n.const([1], np.int64), keepdims=0)
    number = n.op("Clip", n.op("ReduceSum", shown, n.const([1], np.int64), keepdims=0), n.const(1e-9))
    mean = n.op("Div", total, number)
    norm = n.op("Clip", n.op("ReduceL2", mean, axes=[1], keepdims=1), n.const(1e-12))
    return n.model(n.op("Div", mean, n.op("Expand", norm, n.const([1, c], np.int64))))


def _hidden(n: TransformerNet, hidden: str, count: int) -> onnx.ModelProto:
    """An encoder with softmax(where(hidden, -inf, logits)), read at its first position."""
    (h, d), ids = (2, 16), n.ids(count, 40)
    c = h * d
    x = _encoder(n, ids, count, c, 40)
    for _ in range(2):
        q, k, v = (n.heads(n.linear(x, c, c, gain=1.5), count, h, d) for _ in range(3))
        y = n.op("Where", hidden, n.const(-np.inf), n.logits(q, k, d))
        x = _post_norm(n, x, n.linear(n.merged(n.attend(y, v), count, c), c, c), c)
    first = n.op("Tanh", n.linear(n.op("Gather", x, n.const(0, np.int64), axis=1), c, c))
    return n.model(n.linear(first, c, 5))


@network
def encoder_of_hidden() -> onnx.ModelProto:
    """The mask is boolean and true where nothing may be seen."""
    n, count = TransformerNet(opset=14), 10
    mask = n.mask(count, TensorProto.BOOL, "hidden")
    return _hidden(n, n.op("Unsqueeze", mask, n.const([1, 2], np.int64)), count)


@network
def encoder_of_zeros() -> onnx.ModelProto:
    """The mask is of integers and compared with zero."""
    n, count = TransformerNet(opset=14), 10
    mask = n.mask(count)
    hidden = n.op("Equal", n.op("Unsqueeze", mask, n.const([1, 2], np.int64)), n.const(0, np.int64))
    return _hidden(n, hidden, count)


def _causal(count: int) -> np.ndarray:
    return np.triu(np.full((1, 1, count, count), LOWEST, np.float32), 1)


@network
def gpt() -> onnx.ModelProto:
    """Normalization before, Gemm on rows, one dense layer split in three, a constant causal mask that is added; a logit per token."""
    n, count, h, d, rows = TransformerNet(opset=17), 12, 3, 16, 50
    c, table = h * d, n.table(rows, h * d)
    x = n.op("Add", n.op("Gather", table, n.ids(count, rows)), n.const(n.rng.normal(0, 0.3, (1, count, c))))

    def gemm(x: str, a: int, b: int) -> str:
        w, bias = n.const(n.weights((b, a), 1.2).T), n.const(n.rng.normal(0, 0.1, b))
        return n.reshape(n.op("Gemm", n.reshape(x, -1, a), w, bias), 1, count, b)

    for _ in range(2):
        parts = n.split(gemm(n.layer_norm(x, c), c, 3 * c), [c, c, c], axis=2)
        q, k, v = (n.heads(p, count, h, d) for p in parts)
        y = n.attend(n.op("Add", n.logits(q, k, d), n.const(_causal(count))), v)
        x = n.op("Add", gemm(n.merged(y, count, c), c, c), x)
        x = n.op("Add", x, gemm(n.gelu_tanh(gemm(n.layer_norm(x, c), c, 4 * c)), 4 * c, c))
    return n.model(n.op("MatMul", n.layer_norm(x, c), n.op("Transpose", table, perm=[1, 0])))


def _turned(n: TransformerNet, x: str, count: int, d: int) -> str:
    """Rotary embedding with halves."""
    angles = np.arange(count)[:, None] * 10000.0 ** (-np.arange(d // 2) / (d // 2))
    cos, sin = (n.const(np.tile(f(angles), 2)[None, None]) for f in (np.cos, np.sin))
    low, high = (n.op("Slice", x, *(n.const([i], np.int64) for i in (a, b, 3))) for a, b in ((0, d // 2), (d // 2, 2**62)))
    half = n.op("Concat", n.op("Neg", high), low, axis=-1)
    return n.op("Add", n.op("Mul", x, cos), n.op("Mul", half, sin))


def _repeated(n: TransformerNet, x: str, shape: Sequence[int], times: int) -> str:
    """Each head of [1,G,N,D] `times` over."""
    g, count, d = shape
    x = n.op("Expand", n.op("Unsqueeze", x, n.const([2], np.int64)), n.const([1, g, times, count, d], np.int64))
    return n.reshape(x, 1, g * times, count, d)


@network
def llama() -> onnx.ModelProto:
    """RMS normalization, rotary embedding, two queries to a key, SwiGLU, no biases."""
    n, count, h, g, d, rows = TransformerNet(opset=18), 16, 4, 2, 12, 50
    c = h * d
    x = n.op("Gather", n.table(rows, c, 0.3), n.ids(count, rows))
    for _ in range(2):
        y = n.rms_norm(x, c)
        q, k, v = (n.heads(n.linear(y, c, each * d, bias=False, gain=1.5), count, each, d) for each in (h, g, g))
        q, k = _turned(n, q, count, d), _turned(n, k, count, d)
        k, v = (_repeated(n, s, (g, count, d), h // g) for s in (k, v))
        y = n.attend(n.op("Add", n.logits(q, k, d), n.const(_causal(count))), v)
        x = n.op("Add", x, n.linear(n.merged(y, count, c), c, c, bias=False))
        y = n.rms_norm(x, c)
        gate, up = n.silu(n.linear(y, c, 2 * c, bias=False)), n.linear(y, c, 2 * c, bias=False)
        x = n.op("Add", x, n.linear(n.op("Mul", gate, up), 2 * c, c, bias=False))
    return n.model(n.linear(n.rms_norm(x, c), c, rows, bias=False, gain=2.0))


@network
def cross_attention() -> onnx.ModelProto:
    """A decoder: causal attention to itself, then attention to the positions of another input."""
    n, (count, seen), (h, d) = TransformerNet(1, 16, 32, opset=17), (16, 20), (2, 16)
    memory, c, x = n.input(1, seen, 32), h * d, n.x
    for _ in range(2):
        x = n.layer_norm(n.op("Add", x, n.attention(x, x, (count, count), h, d, n.const(_causal(count)))), c)
        x = n.layer_norm(n.op("Add", x, n.attention(x, memory, (count, seen), h, d)), c)
        x = n.layer_norm(n.op("Add", x, n.op("Relu", n.linear(x, c, c))), c)
    return n.model(n.linear(x, c, 12))
