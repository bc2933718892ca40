"""Weights of few bits as real numbers that follow derivatives, and the integers that they stand for.

    W = S m clip(round(u), low, high)        u real, one for each weight; du = dW / (S m), straight through the rounding
    b = b' - (W - W_0) E[x]                  b' and u are what is learned

Derivatives pass through the rounding (Bengio et al. 2013, "Estimating or Propagating Gradients Through Stochastic Neurons"; Hubara et al. 2020,
"AdaQuant"). Activations are seldom negative, so that without the second line all weights of a channel would be driven alike by what is an error of
the mean; with it a weight answers for x - E[x] alone, as in second-order rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.ir.graph import Value
from qcompiler.ir.ops import Const, Conv

from .quantize_weights import MAX_BIAS, QuantizedWeights
from .weight_grid import NARROW, Grid, grid_of_integers, grid_of_rows, row_of

Tensor = Any


def integers_behind(v: Value) -> Value | None:
    """The quantized constant behind a Dequantize."""
    i = v.inputs[0] if v.inputs else v
    return i if isinstance(i.op, Const) and i.type.quant is not None else None


@dataclass(frozen=True, eq=False)
class Layer:
    """Integers of a layer as they were, their scales [O], and the grid of weights that may move."""

    weights: NDArray[np.int64]
    bias: NDArray[np.int64]
    scale: NDArray[np.float64]
    bias_scale: NDArray[np.float64]
    bits: int
    grid: Grid | None
    mean: NDArray[np.float64]
    """[O, C/groups]"""

    @classmethod
    def of(cls, v: Value, bits: int, mean: NDArray[np.float64] | None) -> Layer:
        """Of the convolution `v`, whose weights were to have so many bits, and which reads `mean` on average."""
        w, b = (integers_behind(i) for i in v.inputs[1:])
        assert w is not None
        assert b is not None
        assert isinstance(w.op, Const)
        assert isinstance(b.op, Const)
        assert w.type.quant is not None
        assert b.type.quant is not None
        integers = w.op.data.astype(np.int64)
        scale, bias_scale = (np.broadcast_to(np.array(t.type.quant.scale), len(integers)) for t in (w, b) if t.type.quant)
        assert isinstance(v.op, Conv)
        read = np.zeros(w.shape[3] * v.op.groups) if mean is None else mean
        rows = np.repeat(read.reshape(v.op.groups, -1), len(integers) // v.op.groups, 0)
        grid = _grid(integers, scale, bits, v.op.groups > 1 and w.shape[3] == 1) if bits < 8 else None
        return cls(integers, b.op.data.astype(np.int64), scale, bias_scale, w.type.quant.bits, grid, rows)

    def made(self, weights: NDArray[np.floating] | None, bias: NDArray[np.floating]) -> QuantizedWeights:
        """With other `weights`, integers, and another real `bias`; integers of it that would be too great stay."""
        q = self.weights if weights is None else weights.astype(np.int64)
        b = np.rint(bias.astype(np.float64) / self.bias_scale)
        b = np.where(np.abs(b) <= MAX_BIAS, b, self.bias)
        return QuantizedWeights(q.astype(np.int8), np.array(self.scale), b.astype(np.int32), (), self.bits)


def _grid(q: NDArray[np.int64], scale: NDArray[np.float64], bits: int, depthwise: bool) -> Grid:
    """That of weights `q` [O, kh, kw, C/groups]."""
    rows = q.reshape(len(q), -1)
    return grid_of_rows(rows, scale, bits, row_of(q.shape)) if depthwise and bits <= NARROW else grid_of_integers(rows, scale, bits)


class Latent:
    """The real numbers behind a layer's integers, as tensors that follow derivatives."""

    def __init__(self, torch: Any, rounding: Any, layer: Layer) -> None:
        self.layer, self._round = layer, rounding
        column = (-1, *[1] * (layer.weights.ndim - 1))
        scale = torch.tensor(layer.scale, dtype=torch.float32)
        self._unit = scale
        self.bias = torch.nn.Parameter(torch.tensor(layer.bias * layer.bias_scale, dtype=torch.float32) / scale)
        self._fixed = torch.tensor(layer.weights, dtype=torch.float32) * scale.reshape(column)
        self.u = None
        if (grid := layer.grid) is not None:
            self._multiple = torch.tensor(grid.multipliers.reshape(layer.weights.shape), dtype=torch.float32)
            self._step = self._multiple * scale.reshape(column)
            self._ends = [torch.tensor(a.reshape(column), dtype=torch.float32) for a in (grid.low, grid.high)]
            self.u = torch.nn.Parameter(torch.tensor(layer.weights, dtype=torch.float32) / self._multiple)
            self._mean = torch.tensor(layer.mean, dtype=torch.float32)

    def parameters(self) -> tuple[Tensor, Tensor]:
        """Weights and bias that the network computes with."""
        if self.u is None:
            return self._fixed, self.bias * self._unit
        w = self._round.apply(self.u, *self._ends) * self._step
        return w, self.bias * self._unit - ((w - self._fixed).sum((1, 2)) * self._mean).sum(1)

    def made(self) -> QuantizedWeights:
        """The integers that it stands for now."""
        w = None if self.u is None else (self._round.apply(self.u, *self._ends) * self._multiple).detach().numpy()
        return self.layer.made(w, self.parameters()[1].detach().numpy())


def straight_through(torch: Any) -> Any:
    """clip(round(u), low, high), whose derivative is 1 where u rounds to an integer within."""

    class Rounding(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, u: Tensor, low: Tensor, high: Tensor) -> Tensor:
            q = torch.round(u)
            ctx.save_for_backward((q >= low) & (q <= high))
            return torch.minimum(torch.maximum(q, low), high)

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
            return gradient * ctx.saved_tensors[0], None, None

    return Rounding
