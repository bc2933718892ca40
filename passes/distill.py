"""Integers of few bits that answer as the float network does: rounding decided by the whole network's error instead of each layer's.

    minimise   E_x [KL(f(x) || f_q(x; W, b)) + F mean_s E|h_s - h_s,q|^2 / Var h_s]      over integers W within their grids, and biases b

f is the float network, f_q the Q/DQ network with its activations in 8 bits, h_s the values at the stages s through which everything passes
(`stages`). No labels are needed: f is the teacher (Hinton et al. 2015, "Distilling the Knowledge in a Neural Network"; for the stages Romero et al.
2015, "FitNets"). The answers alone would be learned by heart: a hundred samples say little of a million weights, all their pixels at every stage do.

The grid (S, m, low, high) stays as it was chosen, and weights begin at the integers of second-order rounding (`round_weights`); what moves them is in
`latent_weights`. Layers of 8 bits keep their weights; biases of all layers follow. Inputs are `mixtures` of calibration samples. Answers that are not
classes are judged by their noise (`precision/loss.py`). Every fourth sample is held out of this: where it does not lower their loss, nothing is
changed. Where it does, as many steps again learn from all samples: what limits tuning is their number.

Adam (Kingma & Ba 2015), steps in units of S m, falling to zero along a cosine. Needs torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from qcompiler.ir.graph import Graph, Value
from qcompiler.ir.ops import Conv, Dequantize, Quantize
from qcompiler.ir.sequence import Attention

from .abreast import abreast
from .latent_weights import Latent, Layer, integers_behind, straight_through
from .mixtures import Mixtures
from .precision.loss import Classes, Judge, Values, judge_of
from .quantize_weights import QuantizedWeights
from .stages import stages
from .torch_network import MISSING, Feeds, Parameters, Tensor, TorchNetwork, import_torch, is_plain, judged, one_thread

BIAS_RATE, WEIGHT_RATE = 0.001, 0.01
"""Parts of a step between integers of weights, each update at first."""
FEATURES = 50.0
"""F: nats that noise at the stages as great as what is there counts."""
EVERY = 4
"""Of so many samples the last is held out."""
LEAST_VARIANCE = 1e-12
LEAST = 32
"""Samples, without which nothing can be learned of answers to others."""
PRODUCTS = 8e11
"""Multiply-accumulates of all samples that the float network answers on the way: some minutes."""
BATCH, MOST_STEPS, LEAST_STEPS = 8, 300, 40
LARGE = 16
"""Samples in a batch where many of them can be afforded."""
AT_HAND = 1 << 22
"""Numbers of a value beyond which there are no more than BATCH samples: among LARGE each of them took 1.5 times as long (MobileNetV2, Zen 3)."""
SHARD = 2
"""Samples that a core runs at once."""
Progress = Callable[[str, int, int], None]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Distilled:
    """Weights and biases of layers by name, and the loss in nats on samples that were held out: before, and half-way, when they had not been seen."""

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
    layers = {v.name: Layer.of(v, widths.get(v.name, 8), means.get(v.name)) for v in qdq.order if _is_layer(v)}
    graphs = judged(graph), judged(qdq)
    pairs = _compared(*graphs)
    try:
        teacher, student = (TorchNetwork(g, torch, xp, samples[0], [p[i] for p in pairs]) for i, g in enumerate(graphs))
        with one_thread(torch):
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
    affordable, greatest = products / max(each, 1), max(_held(v) for v in graph.order)
    batch = int(min(LARGE, max(BATCH, min(affordable // MOST_STEPS, AT_HAND // greatest))))
    batch -= batch % SHARD
    return int(min(MOST_STEPS, max(LEAST_STEPS, affordable // batch))), batch


def _held(v: Value) -> int:
    """Numbers of one sample that are held at once for `v`: its own, or the logits of attention."""
    if not isinstance(v.op, Attention):
        return v.type.size
    q, k = (i.shape for i in v.inputs[:2])
    return int(np.prod(q[:3])) * k[1]


def _is_layer(v: Value) -> bool:
    """Whether weights and bias of `v` are integers, of which only this layer knows the scale."""
    return isinstance(v.op, Conv) and len(v.inputs) == 3 and all(integers_behind(i) is not None for i in v.inputs[1:])


def _compared(graph: Graph, qdq: Graph) -> list[tuple[Value, Value]]:
    """Stages of the float network, and what the Q/DQ network stores of them."""
    stored = {v.inputs[0].inputs[0].name: v for v in qdq.order if isinstance(v.op, Dequantize) and isinstance(v.inputs[0].op, Quantize)}
    return [(v, stored[v.name]) for v in stages(graph) if v.name in stored]


class _Distillation:
    def __init__(
        self, torch: Any, teacher: TorchNetwork, student: TorchNetwork, layers: Mapping[str, Layer], samples: Sequence[Feeds], tell: Progress
    ) -> None:
        self._torch, self._teacher, self._student, self._tell = torch, teacher, student, tell
        self._all = [self._tensors(s) for s in samples]
        self._seen, held = parts_of(self._all)
        self._held = self._shards({name: torch.cat([s[name] for s in held]) for name in held[0]})
        rounding = straight_through(torch)
        self._latent = {name: Latent(torch, rounding, layer) for name, layer in layers.items()}
        examined = list(abreast(self._examined, self._held))
        self._answers = [y for answers, _ in examined for y in answers]
        self._variances = [max(float(np.mean(found)), LEAST_VARIANCE) for found in zip(*(v for _, v in examined))]
        self._judge: Judge = judge_of(teacher.graph, self._answers)

    def run(self, plan: tuple[int, int]) -> Distilled:
        """Steps, and samples in each. Half of them learn from what is not held out; where that helps what is held out, the rest learn from all."""
        steps, batch = plan
        before = self._loss_of_held()
        self._tune(self._seen, batch, range(steps // 2), steps)
        after = self._loss_of_held()
        if after < before:
            self._tune(self._all, batch, range(steps // 2, steps), steps)
        return Distilled({name: latent.made() for name, latent in self._latent.items()}, before, after)

    def _tune(self, samples: Sequence[Mapping[str, Tensor]], batch: int, numbers: range, total: int) -> None:
        """The steps of those `numbers`, of `total`: their rates fall to zero."""
        parts = [latent.bias for latent in self._latent.values()], [latent.u for latent in self._latent.values() if latent.u is not None]
        groups = [{"params": p, "lr": rate} for p, rate in zip(parts, (BIAS_RATE, WEIGHT_RATE)) if p]
        optimizer, inputs = self._torch.optim.Adam(groups), Mixtures(self._torch, samples)
        falling = self._torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(numbers))
        for n in numbers:
            self._tell("tuning weights", n, total)
            optimizer.zero_grad()
            self._derive(inputs.draw(batch))
            optimizer.step()
            falling.step()

    def _derive(self, feeds: Mapping[str, Tensor]) -> None:
        """Of the mean loss over shards of the samples, by all that is learned; in a fixed order, so that the number of cores changes no bit."""
        made = self._parameters()
        leaves = {name: tuple(t.detach().requires_grad_(t.requires_grad) for t in pair) for name, pair in made.items()}
        moving = [(name, i) for name, pair in leaves.items() for i, t in enumerate(pair) if t.requires_grad]

        def slopes(shard: Mapping[str, Tensor]) -> Sequence[Tensor]:
            with self._torch.no_grad():
                wanted = self._teacher.values(shard)
            loss = self._loss(wanted, self._student.values(shard, leaves))
            return self._torch.autograd.grad(loss, [leaves[name][i] for name, i in moving])

        shards = self._shards(feeds)
        sums = [sum(parts) / len(shards) for parts in zip(*abreast(slopes, shards))]
        self._torch.autograd.backward([made[name][i] for name, i in moving], sums)

    def _shards(self, feeds: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        parts = {name: x.split(SHARD * len(x) // self._teacher.samples_in(feeds)) for name, x in feeds.items()}
        return [dict(zip(parts, shard)) for shard in zip(*parts.values())]

    def _parameters(self) -> Parameters:
        return {name: latent.parameters() for name, latent in self._latent.items()}

    def _tensors(self, sample: Feeds) -> dict[str, Tensor]:
        return {v.name: self._torch.tensor(sample[v.name]) for v in self._teacher.graph.inputs}

    def _examined(self, shard: Mapping[str, Tensor]) -> tuple[list[NDArray[np.floating]], list[float]]:
        """Answers of the float network, one for each sample, and the variance at each stage."""
        with self._torch.no_grad():
            y, *values = self._teacher.values(shard)
        return self._each(y, shard), [float(a.var(correction=0)) for a in values]

    def _each(self, y: Tensor, shard: Mapping[str, Tensor]) -> list[NDArray[np.floating]]:
        return np.split(y.numpy(), self._student.samples_in(shard))

    def _loss_of_held(self) -> float:
        with self._torch.no_grad():
            parameters = self._parameters()

        def answers(shard: Mapping[str, Tensor]) -> list[NDArray[np.floating]]:
            with self._torch.no_grad():
                return self._each(self._student(shard, parameters), shard)

        found = (y for part in abreast(answers, self._held) for y in part)
        return float(np.mean([self._judge.loss(a, b) for a, b in zip(self._answers, found, strict=True)]))

    def _loss(self, wanted: Sequence[Tensor], found: Sequence[Tensor]) -> Tensor:
        """Of answers, by the judge, and of what lies at the stages."""
        error = self._torch.nn.functional.mse_loss
        noise = [error(b, a) / variance for a, b, variance in zip(wanted[1:], found[1:], self._variances, strict=True)]
        loss = self._loss_of_answers(wanted[0], found[0])
        return loss + FEATURES * sum(noise) / len(noise) if noise else loss

    def _loss_of_answers(self, y: Tensor, other: Tensor) -> Tensor:
        if isinstance(self._judge, Values):
            return self._torch.nn.functional.mse_loss(other, y) / (2 * self._judge.variance)
        a, b = (self._log(z) for z in (y, other))
        return (a.exp() * (a - b)).sum(-1).mean()

    def _log(self, y: Tensor) -> Tensor:
        probable = isinstance(self._judge, Classes) and self._judge.probabilities
        return y.clamp(min=1e-12).log() if probable else self._torch.log_softmax(y, -1)


def _silent(what: str, done: int, total: int) -> None:
    """Hears nothing."""
