"""What fewer bits cost, from derivatives of the float network: no run with changed weights is needed.

The loss L of changed weights W + D (`loss.py`) has its least value, zero, at D = 0; there its gradient vanishes, and its Hessian is

    H = J^T C J                J the derivatives of the answer by the weights, C those of the loss by the answer, twice
    C = diag(p) - p p^T        of a row of classes, over the number of rows;     1 / (n s^2) of n values of variance s^2

    Hessian trace    1/2 tr(H_l) / n_l |D_l|^2             nats; tr(H_l) = E v_l^T (H v)_l for random signs v, H v by differentiating twice
    Fisher           1/2 E (g_l . D_l)^2                   nats; g = J^T u, u of mean 0 and covariance C: for classes e_y - p with y drawn from p

Only the second knows of biases, which take back what rounded weights shift on average.

The first is that of Dong et al. 2020, "HAWQ-V2", with the trace estimator of Hutchinson 1989; it knows the length of a change but not its
direction. The second knows both: the mean over samples of 1/2 D^T J^T C J D. Neither sees beyond second order. Needs torch: `pip install
qcompiler[torch]`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import UsageError
from qcompiler.ir.graph import Graph
from qcompiler.ir.interpret import run
from qcompiler.ir.ops import Const, Input

from .loss import Classes, Judge, Values
from .sensitivity import Forms, changes_of
from .simulate import Feeds, Weights, opened, weighted_layers, weights_of

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SecondOrder:
    """Nats of every change, layers first as in `Sensitivities.changes`."""

    hessian: Floats
    fisher: Floats


def measure_second_order(graph: Graph, forms: Forms, samples: Sequence[Feeds], judge: Judge, seed: int = 0) -> SecondOrder:
    """Of every layer of the float `graph` in every width of `forms`, over `samples`. UsageError where torch is missing."""
    network = _Differentiable(graph, seed)
    own = weights_of(graph)
    deltas = {(layer, bits): _difference(forms[bits][layer], own[layer]) for layer, bits in changes_of(forms)}
    traces, fisher = dict.fromkeys(own, 0.0), np.zeros(len(deltas))
    for sample in samples:
        gradients, curvatures = network.derivatives(sample, judge)
        for layer in own:
            traces[layer] += curvatures[layer] / len(samples)
        fisher += [0.5 * _product(gradients[layer], d) ** 2 / len(samples) for (layer, _), d in deltas.items()]
    hessian = [0.5 * traces[layer] / d.size * float((d**2).sum()) for (layer, _), (d, _) in deltas.items()]
    return SecondOrder(np.array(hessian), fisher)


Pair = tuple[Floats, Floats]


def _difference(a: Weights, b: Weights) -> Pair:
    return a[0].astype(np.float64) - b[0], a[1].astype(np.float64) - b[1]


def _product(a: Pair, b: Pair) -> float:
    return float((a[0] * b[0]).sum() + (a[1] * b[1]).sum())


class _Differentiable:
    """The float graph under torch, its weights and biases being leaves."""

    def __init__(self, graph: Graph, seed: int) -> None:
        try:
            import array_api_compat.torch as xp
            import torch
        except ImportError as problem:
            raise UsageError(f"derivatives of a network need torch, which is not installed ({problem}); pip install 'qcompiler[torch]'") from problem
        self._xp, self._torch = xp, torch
        self._graph = opened(graph)
        found = weights_of(graph)
        self._leaves = {name: [torch.tensor(a, requires_grad=True) for a in found[name]] for name in found}
        self._places = {i: leaf for v in weighted_layers(self._graph) for i, leaf in zip(v.inputs[1:], self._leaves[v.name])}
        self._random = torch.Generator().manual_seed(seed)

    def derivatives(self, sample: Feeds, judge: Judge) -> tuple[Mapping[str, Pair], Mapping[str, float]]:
        """By layer: (J^T u for one u drawn, v^T H v of the weights for one v drawn)."""
        y = self._answer(sample)
        grad, weights = self._torch.autograd.grad, [w for w, _ in self._leaves.values()]
        gradients = grad((y * self._score(y.detach(), judge)).sum(), [a for pair in self._leaves.values() for a in pair], retain_graph=True)
        slopes = grad(self._loss(y, judge), weights, create_graph=True)
        signs = [self._torch.randint(0, 2, w.shape, generator=self._random).to(w.dtype) * 2 - 1 for w in weights]
        curvatures = [float((h * v).sum()) for h, v in zip(grad(slopes, weights, signs), signs)]
        g = [a.numpy().astype(np.float64) for a in gradients]
        return dict(zip(self._leaves, zip(g[::2], g[1::2]))), dict(zip(self._leaves, curvatures))

    def _answer(self, sample: Feeds) -> Any:
        order = Graph((), self._graph.outputs[:1], ()).order
        env = {v: self._torch.tensor(np.asarray(sample[v.name])) for v in order if isinstance(v.op, Input)}
        env |= {v: self._torch.tensor(np.asarray(v.op.data)) for v in order if isinstance(v.op, Const) and v not in self._places}
        env |= self._places
        return run(order, env, self._graph.outputs[:1], self._xp)[self._graph.outputs[0]]

    def _loss(self, y: Any, judge: Judge) -> Any:
        """That of the judge between y and itself as a constant: its value is zero, its Hessian is not."""
        if isinstance(judge, Values):
            return ((y - y.detach()) ** 2).sum() / (2 * y.numel() * judge.variance)
        a = self._log(y, judge)
        return -(a.detach().exp() * a).sum(-1).mean()

    def _score(self, y: Any, judge: Judge) -> Any:
        """u: mean 0, covariance C; for probabilities, what multiplies their change."""
        if isinstance(judge, Values):
            return self._torch.randn(y.shape, generator=self._random) / (y.numel() * judge.variance) ** 0.5
        p = self._log(y, judge).exp()
        flat = p.reshape(-1, p.shape[-1])
        drawn = self._torch.nn.functional.one_hot(self._torch.multinomial(flat, 1, generator=self._random)[:, 0], p.shape[-1])
        score = (drawn / flat.clamp(min=1e-12) if _probable(judge) else drawn - flat) / len(flat) ** 0.5
        return score.reshape(p.shape).to(y.dtype)

    def _log(self, y: Any, judge: Judge) -> Any:
        return y.clamp(min=1e-12).log() if _probable(judge) else self._torch.log_softmax(y, -1)


def _probable(judge: Judge) -> bool:
    return isinstance(judge, Classes) and judge.probabilities
