"""Integers of few bits that answer as the float network does: rounding decided by the whole network's error instead of each layer's.

    minimise   E_x KL(f(x) || f_q(x; W, b))      over W = S m q, q integers in [low, high], and biases b
    W = S m clip(round(u))                       u real, one for each weight; du = dW / (S m), straight through the rounding

f is the float network, f_q the Q/DQ network with its activations in 8 bits. No labels are needed: f is the teacher (Hinton et al. 2015, "Distilling
the Knowledge in a Neural Network"). The grid (S, m, low, high) stays as it was chosen, and u begins at the integers of second-order rounding
(`round_weights`), so that few have to move: the rate is such that a weight reaches the next integer where derivatives agree. These pass through the
rounding (Bengio et al. 2013, "Estimating or Propagating Gradients Through Stochastic Neurons"; Hubara et al. 2020, "AdaQuant"). Layers of 8 bits
keep their weights; biases of all layers follow.

    b = b' - (W - W_0) E[x]            b' and u are what is learned

Activations are seldom negative, so that without the second term all weights of a channel would be driven alike by what is an error of the mean;
with it a weight answers for x - E[x] alone, as in second-order rounding.

Calibration data are few, so inputs are mixed, x = (1 - a) x_i + a x_j with a up to `MIXED`, and the teacher answers the mixture (after Zhang et al.
2018, "mixup"). Answers that are not classes are judged by their noise (`precision/loss.py`). Every fourth sample is held out of this: where it
does not lower their loss, nothing is changed.

Adam (Kingma & Ba 2015), steps in units of S m, falling to zero along a cosine. Needs torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import cos, pi
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.ops import Const, Conv

from .precision.loss import Classes, Judge, Values, judge_of
from .quantize_weights import MAX_BIAS, QuantizedWeights
from .torch_network import MISSING, Feeds, Parameters, Tensor, TorchNetwork, import_torch, is_plain, judged
from .weight_grid import NARROW, Grid, grid_of_integers

RATE = 0.003
"""Of a step between integers of weights, each update of a bias at first."""
TRAVEL, FASTEST = 1.0, 0.01
"""Steps between integers that a weight goes where all derivatives agree on the direction; noise seldom takes it across one."""
MIXED = 0.3
EVERY = 4
"""Of so many samples the last is held out."""
LEAST = 32
"""Samples, without which nothing can be learned of answers to others."""
PRODUCTS = 2.4e11
"""Multiply-accumulates of all samples that the float network answers on the way: some minutes."""
BATCH, MOST_STEPS, LEAST_STEPS = 8, 400, 40
LARGE = 32
"""Samples in a batch where many of them can be afforded."""
Progress = Callable[[str, int, int], None]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Distilled:
    """Weights and biases of layers by name, and the loss in nats on samples that were held out, before and after."""

    weights: Mapping[str, QuantizedWeights]
    before: float
    after: float

    @property
    def better(self) -> bool:
        """Whether to keep them."""
        return self.after < self.before


def parts_of(samples: Sequence[T]) -> tuple[list[T], list[T]]:
    """(those to learn from, those that are held out)."""
    held = samples[EVERY - 1 :: EVERY]
    return [s for i, s in enumerate(samples) if i % EVERY != EVERY - 1], list(held)


def woven(seen: Sequence[T], held: Sequence[T]) -> list[T]:
    """All of them, in an order that makes `parts_of` hold out some of `held`, where these are a quarter at least."""
    count, step = min(len(held), (len(seen) + len(held)) // EVERY), EVERY - 1
    others = [*seen, *held[count:]]
    rows = ([*others[i * step : (i + 1) * step], held[i]] for i in range(count))
    return [*(s for row in rows for s in row), *others[count * step :]]


def distill(
    graph: Graph,
    qdq: Graph,
    widths: Mapping[str, int],
    samples: Sequence[Feeds],
    progress: Progress | None = None,
    products: float = PRODUCTS,
    means: Mapping[str, NDArray[np.float64]] = MappingProxyType({}),
) -> Distilled | str:
    """What layers of the Q/DQ network `qdq` of the float network `graph` become, or why this cannot be done.

    `widths` are the bits of weights by the name of the layer; those of 8 keep theirs. `means` are E[x] per channel of what layers read, where known.
    """
    if (why := _why_not(graph, qdq, samples)) is not None:
        return why
    found = import_torch()
    if found is None:
        return MISSING
    torch, xp = found
    layers = {v.name: _Layer.of(v, widths.get(v.name, 8), means.get(v.name)) for v in qdq.order if _is_layer(v)}
    try:
        teacher, student = (TorchNetwork(judged(g), torch, xp, samples[0]) for g in (graph, qdq))
        return _Distillation(torch, teacher, student, layers, samples, progress or _silent).run(_steps(graph, products))
    except (NotImplementedError, TypeError) as problem:
        return f"torch cannot run the network: {problem}"


def _why_not(graph: Graph, qdq: Graph, samples: Sequence[Feeds]) -> str | None:
    if len(samples) < LEAST:
        return f"it needs {LEAST} calibration samples, found {len(samples)}"
    if len(graph.outputs) > 1 or not judged(graph).outputs[0].type.dtype.is_float:
        return f"answers are judged where there is one output of numbers, found {len(graph.outputs)} outputs"
    return None if is_plain(qdq) else "the network came quantized"


def _steps(graph: Graph, products: float) -> tuple[int, int]:
    """(number of steps, samples in each)."""
    each = sum(v.type.size * int(np.prod(v.inputs[1].shape[1:])) for v in graph.order if isinstance(v.op, Conv))
    affordable = products / max(each, 1)
    batch = int(min(LARGE, max(BATCH, affordable // MOST_STEPS)))
    return int(min(MOST_STEPS, max(LEAST_STEPS, affordable // batch))), batch


def _is_layer(v: Value) -> bool:
    """Whether weights and bias of `v` are integers, of which only this layer knows the scale."""
    return isinstance(v.op, Conv) and len(v.inputs) == 3 and all(_integers(i) is not None for i in v.inputs[1:])


def _integers(v: Value) -> Value | None:
    """The quantized constant behind a Dequantize."""
    i = v.inputs[0] if v.inputs else v
    return i if isinstance(i.op, Const) and i.type.quant is not None else None


@dataclass(frozen=True, eq=False)
class _Layer:
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
    def of(cls, v: Value, bits: int, mean: NDArray[np.float64] | None) -> _Layer:
        """Of the convolution `v`, whose weights were to have so many bits, and which reads `mean` on average."""
        w, b = (_integers(i) for i in v.inputs[1:])
        assert w is not None
        assert b is not None
        assert isinstance(w.op, Const)
        assert isinstance(b.op, Const)
        assert w.type.quant is not None
        assert b.type.quant is not None
        integers = w.op.data.astype(np.int64)
        scale, bias_scale = (np.broadcast_to(np.array(t.type.quant.scale), len(integers)) for t in (w, b) if t.type.quant)
        assert isinstance(v.op, Conv)
        depthwise = v.op.groups > 1 and w.shape[3] == 1
        read = np.zeros(w.shape[3] * v.op.groups) if mean is None else mean
        rows = np.repeat(read.reshape(v.op.groups, -1), len(integers) // v.op.groups, 0)
        grid = grid_of_integers(integers.reshape(len(integers), -1), scale, bits, depthwise and bits <= NARROW) if bits < 8 else None
        return cls(integers, b.op.data.astype(np.int64), scale, bias_scale, w.type.quant.bits, grid, rows)

    def made(self, weights: NDArray[np.floating] | None, bias: NDArray[np.floating]) -> QuantizedWeights:
        """With other `weights`, integers, and another real `bias`; integers of it that would be too great stay."""
        q = self.weights if weights is None else weights.astype(np.int64)
        b = np.rint(bias.astype(np.float64) / self.bias_scale)
        b = np.where(np.abs(b) <= MAX_BIAS, b, self.bias)
        return QuantizedWeights(q.astype(np.int8), np.array(self.scale), b.astype(np.int32), (), self.bits)


class _Latent:
    """The real numbers behind a layer's integers, as tensors that follow derivatives."""

    def __init__(self, torch: Any, rounding: Any, layer: _Layer) -> None:
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


class _Distillation:
    def __init__(
        self, torch: Any, teacher: TorchNetwork, student: TorchNetwork, layers: Mapping[str, _Layer], samples: Sequence[Feeds], tell: Progress
    ) -> None:
        self._torch, self._teacher, self._student, self._tell = torch, teacher, student, tell
        self._seen, self._held = ([self._tensors([s]) for s in part] for part in parts_of(samples))
        rounding = straight_through(torch)
        self._latent = {name: _Latent(torch, rounding, layer) for name, layer in layers.items()}
        self._answers = list(self._answered(teacher, None))
        self._judge: Judge = judge_of(teacher.graph, self._answers)
        self._random = torch.Generator().manual_seed(0)

    def run(self, plan: tuple[int, int]) -> Distilled:
        """So many steps of so many samples."""
        steps, batch = plan
        before = self._loss_of_held()
        rates = RATE, min(2 * TRAVEL / steps, FASTEST)
        parts = [latent.bias for latent in self._latent.values()], [latent.u for latent in self._latent.values() if latent.u is not None]
        optimizer = self._torch.optim.Adam([{"params": p, "lr": rate} for p, rate in zip(parts, rates) if p])
        for n in range(steps):
            self._tell("tuning weights", n, steps)
            for group, rate in zip(optimizer.param_groups, rates):
                group["lr"] = rate * (1 + cos(pi * n / steps)) / 2
            feeds = self._mixed(batch)
            with self._torch.no_grad():
                wanted = self._teacher(feeds)
            loss = self._loss(wanted, self._student(feeds, self._parameters()))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return Distilled({name: latent.made() for name, latent in self._latent.items()}, before, self._loss_of_held())

    def _parameters(self) -> Parameters:
        return {name: latent.parameters() for name, latent in self._latent.items()}

    def _mixed(self, count: int) -> dict[str, Tensor]:
        """Samples that were not held out, each mixed with another; integers are not mixed."""
        torch = self._torch
        first, second = (torch.randint(len(self._seen), (count,), generator=self._random).tolist() for _ in range(2))
        part = torch.rand(count, generator=self._random) * MIXED
        x, other = (self._joined([self._seen[i] for i in picked]) for picked in (first, second))
        if not all(a.is_floating_point() for a in x.values()):
            return x
        weight = {name: part.repeat_interleave(len(a) // count).reshape(-1, *[1] * (a.ndim - 1)) for name, a in x.items()}
        return {name: torch.lerp(a, other[name], weight[name].to(a.dtype)) for name, a in x.items()}

    def _tensors(self, samples: Sequence[Feeds]) -> dict[str, Tensor]:
        names = [v.name for v in self._teacher.graph.inputs]
        return {name: self._torch.as_tensor(np.concatenate([s[name] for s in samples])) for name in names}

    def _joined(self, samples: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return {name: self._torch.cat([s[name] for s in samples]) for name in samples[0]}

    def _answered(self, network: TorchNetwork, parameters: Parameters | None) -> Iterator[NDArray[np.floating]]:
        """To the samples held out, one sample at a time."""
        for start in range(0, len(self._held), BATCH):
            part = self._held[start : start + BATCH]
            with self._torch.no_grad():
                y = network(self._joined(part), parameters).numpy()
            yield from np.split(y, len(part))

    def _loss_of_held(self) -> float:
        with self._torch.no_grad():
            parameters = self._parameters()
        others = self._answered(self._student, parameters)
        return float(np.mean([self._judge.loss(a, b) for a, b in zip(self._answers, others, strict=True)]))

    def _loss(self, y: Tensor, other: Tensor) -> Tensor:
        """That of the judge, of tensors."""
        if isinstance(self._judge, Values):
            return ((y - other) ** 2).mean() / (2 * self._judge.variance)
        a, b = (self._log(z) for z in (y, other))
        return (a.exp() * (a - b)).sum(-1).mean()

    def _log(self, y: Tensor) -> Tensor:
        probable = isinstance(self._judge, Classes) and self._judge.probabilities
        return y.clamp(min=1e-12).log() if probable else self._torch.log_softmax(y, -1)


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


def _silent(what: str, done: int, total: int) -> None:
    """Hears nothing."""
