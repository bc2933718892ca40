"""The float simulation of RepQ-ViT beside our integer programs: `python -m benchmarks.repq_simulation --beside figures.json`. Needs the extra `torch`
and array-api-compat, which are imported nowhere else; `figures.json` is what `python -m benchmarks.transformers --json` has written.

The scheme (Li et al. 2023, "RepQ-ViT", sections 3 and 4), with 32 calibration samples. An operand x of a dense layer or a matrix product becomes

    x^ = s (clip(round(x / s) + z, 0, 2^b - 1) - z)

in floats, everything else (normalization, GELU, softmax, residuals) stays float. Scales:

- weights: per output channel; activations: per tensor. Both are clipped at whichever percentile of 99.9, 99.99, 99.999 leaves the least
  squared error. The first layer has 8 bits of weights and pixels, the last layer 8 bits of weights;
- normalizations that only dense layers read: s_d and z_d per channel, clipped likewise, then reparameterized to their means
  (`passes/reparameterize.py` has the equations). Here the mean of the zero points stays a fraction, as in the published simulation;
- probabilities A: q = clip(round(-2 log2(A / s)), 0, 2^b - 1), A^ = s 2^(-q/2), and 0 where q does not reach;

`--method minmax` has neither: minimum and maximum everywhere, uniform steps for probabilities.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import array_api_compat.torch as xp
import click
import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import session
from benchmarks.zoo import SEQUENCE_NETWORKS, Data, Task
from qcompiler.frontend import import_model
from qcompiler.ir.graph import Declined, Graph, Value
from qcompiler.ir.interpret import compute
from qcompiler.ir.ops import Const, Conv, Input
from qcompiler.ir.sequence import Attention, Normalize
from qcompiler.passes.legalize import legalize
from qcompiler.passes.reparameterize import Reparameterization, applied, readers, why_not
from qcompiler.passes.simplify import simplify

NETWORKS = ("cifar10_vit", "dinov2s14")
PRECISIONS = ("w8a8", "w6a6", "w4a4")
SAMPLES, BATCH, ENDS = 32, 50, 8
PERCENTILES = (0.999, 0.9999, 0.99999)
Fake = Callable[[Tensor], Tensor]
"""Quantizes and dequantizes."""


# --- quantizers: each takes rows [channels, elements] and gives one scale per row ---------------------------------------


@dataclass(frozen=True)
class Uniform:
    """x^ = s (clip(round(x / s) + z, 0, 2^b - 1) - z); s and z broadcast to x."""

    scale: Tensor
    zero: Tensor
    bits: int

    def __call__(self, x: Tensor) -> Tensor:
        q = (torch.round(x / self.scale) + self.zero).clamp(0, 2**self.bits - 1)
        return (q - self.zero) * self.scale

    def per_tensor(self) -> Uniform:
        """Of one row: for operands of any shape."""
        return Uniform(self.scale.reshape(()), self.zero.reshape(()), self.bits)

    @classmethod
    def of_range(cls, low: Tensor, high: Tensor, bits: int) -> Uniform:
        """Steps from the lowest to the highest."""
        scale = (high - low).clamp(min=1e-8) / (2**bits - 1)
        return cls(scale, torch.round(-low / scale), bits)


@dataclass(frozen=True)
class LogSqrt2:
    """A^ = s 2^(-q/2), q = round(-2 log2(A / s)); what lies beyond the last q is 0."""

    scale: Tensor
    bits: int

    def __call__(self, x: Tensor) -> Tensor:
        q = torch.round(-2 * torch.log2(x / self.scale)).clamp(min=0)
        return torch.where(q < 2**self.bits, self.scale * torch.exp2(-q / 2), torch.zeros_like(x))


def clipped(rows: Tensor, bits: int) -> Uniform:
    """Per row, the percentile with the least squared error."""
    tries = [Uniform.of_range(*quantiles(rows, p), bits) for p in PERCENTILES]
    return best(tries, rows)


def ranged(rows: Tensor, bits: int) -> Uniform:
    """Minimum and maximum of each row."""
    return Uniform.of_range(rows.amin(1, keepdim=True), rows.amax(1, keepdim=True), bits)


def best(tries: Sequence[Uniform], rows: Tensor) -> Uniform:
    """Row by row."""
    errors = torch.stack([((t(rows) - rows) ** 2).sum(1, keepdim=True) for t in tries])
    choice = errors.argmin(0, keepdim=True)
    scale, zero = (torch.stack([getattr(t, name) for t in tries]).gather(0, choice)[0] for name in ("scale", "zero"))
    return Uniform(scale, zero, tries[0].bits)


def quantiles(rows: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """The values that a share 1 - p of each row's elements do not reach, and do not exceed."""
    tail = max(1, round((1 - p) * rows.shape[1]))
    return -torch.topk(-rows, tail, 1).values[:, -1:], torch.topk(rows, tail, 1).values[:, -1:]


def logarithmic(rows: Tensor, bits: int) -> LogSqrt2:
    """The scale among the percentiles with the least squared error."""
    tries = [LogSqrt2(quantiles(rows, p)[1].reshape(()), bits) for p in PERCENTILES]
    return min(tries, key=lambda t: float(((t(rows) - rows) ** 2).sum()))


# --- the simulation ---------------------------------------------------------------------------------------------------


@dataclass
class Simulation:
    """A float graph whose dense layers and attentions see quantized operands; quantizers are fitted to the first batch that comes by."""

    graph: Graph
    weight_bits: int
    activation_bits: int
    repq: bool
    fitted: dict[str, Fake] = field(default_factory=dict)

    @property
    def choose(self) -> Callable[[Tensor, int], Uniform]:
        """How ranges are found."""
        return clipped if self.repq else ranged

    def __call__(self, images: Tensor, wanted: Sequence[Value] = ()) -> list[Tensor]:
        """`wanted` (the output by default) of images [B, *shape of the input]."""
        env: dict[Value, Tensor] = {}
        left = {v: len(users) for v, users in self.graph.uses.items()}
        targets = tuple(wanted) or self.graph.outputs
        for v in self.graph.order:
            env[v] = images if isinstance(v.op, Input) else self.compute(v, [env[i] for i in v.inputs])
            for i in v.inputs:
                left[i] -= 1
                if not left[i] and i not in targets:
                    env.pop(i)
        return [env[v] for v in targets]

    def compute(self, v: Value, operands: Sequence[Tensor]) -> Tensor:
        """One operator; all but constants have a batch before their axes."""
        match v.op:
            case Const(data):
                return torch.from_numpy(np.array(data))
            case Conv():
                first, last = self.ends
                w = self.weight(v.inputs[1], operands[1], ENDS if v in (first, last) else self.weight_bits)
                x = self.activation(v.inputs[0], operands[0], ENDS if v is first else self.activation_bits)
                return batched(partial(compute, v), v, [x, w, *operands[2:]])
            case Attention() as op:
                return self.attention(op, v, operands)
            case _:
                return batched(partial(compute, v), v, operands)

    @property
    def ends(self) -> tuple[Value, Value]:
        """The first and the last dense layer."""
        layers = [v for v in self.graph.order if isinstance(v.op, Conv)]
        return layers[0], layers[-1]

    def weight(self, v: Value, w: Tensor, bits: int) -> Tensor:
        """Per output channel."""
        rows = w.reshape(w.shape[0], -1)
        return self.once(v.name, rows, partial(self.choose, bits=bits))(rows).reshape(w.shape)

    def activation(self, v: Value, x: Tensor, bits: int) -> Tensor:
        """Per tensor."""
        return self.once(v.name, x.reshape(1, -1), lambda rows: self.choose(rows, bits).per_tensor())(x)

    def once(self, name: str, rows: Tensor, fit: Callable[[Tensor], Fake]) -> Fake:
        """The quantizer of that name, fitted where there is none."""
        if name not in self.fitted:
            self.fitted[name] = fit(rows)
        return self.fitted[name]

    def attention(self, op: Attention, v: Value, operands: Sequence[Tensor]) -> Tensor:
        """q, k and v [B,1,N,H,D] and the probabilities quantized."""
        if op.bias or op.mask or op.causal:
            raise NotImplementedError("the simulation covers vision transformers: no masks, no biases")
        q, k, values = (self.activation(i, x, self.activation_bits).squeeze(1).transpose(1, 2) for i, x in zip(v.inputs, operands))
        a = torch.softmax(op.scale * (q @ k.transpose(2, 3)), -1)
        return (self.probabilities(f"{v.name}.probabilities", a) @ values).transpose(1, 2).unsqueeze(1)

    def probabilities(self, name: str, a: Tensor) -> Tensor:
        """By powers of the square root of 2, or in even steps."""
        bits, rows = self.activation_bits, a.reshape(1, -1)
        return self.once(name, rows, lambda r: logarithmic(r, bits) if self.repq else ranged(r, bits).per_tensor())(a)


def batched(run: Callable[..., Any], v: Value, operands: Sequence[Tensor]) -> Tensor:
    """The operator over the batch axis that all operands but constants have."""
    axes = tuple(0 if varies(i) else None for i in v.inputs)
    if all(a is None for a in axes):
        return run(list(operands), xp)
    return torch.vmap(lambda *xs: run(list(xs), xp), axes)(*operands)


@cache
def varies(v: Value) -> bool:
    """Whether a value depends on the input."""
    return isinstance(v.op, Input) or any(varies(i) for i in v.inputs)


def simulated(graph: Graph, images: Tensor, weight_bits: int, activation_bits: int, repq: bool) -> Simulation:
    """The network calibrated on `images`, reparameterized first where asked for."""
    fitted = dict[str, Fake]()
    if repq:
        graph, fitted = reparameterized(graph, images, activation_bits)
    simulation = Simulation(graph, weight_bits, activation_bits, repq, fitted)
    simulation(images)
    return simulation


def reparameterized(graph: Graph, images: Tensor, bits: int) -> tuple[Graph, dict[str, Fake]]:
    """The graph with normalizations of one scale for all channels, and the quantizers of these normalizations by the names of what is read."""
    norms = [v for v in graph.order if isinstance(v.op, Normalize) and why_not(graph, v) is None]
    found, fitted = dict[Value, Reparameterization](), dict[str, Fake]()
    for v, x in zip(norms, FloatRun(graph)(images, norms)):
        q = clipped(x.reshape(-1, x.shape[-1]).T, bits)
        s, z = q.scale[:, 0], q.zero[:, 0]
        scale, zero = s.mean(), z.mean()
        found[v] = Reparameterization((s / scale).double().numpy(), (s * (z - zero)).double().numpy())
        for _, through in readers(graph, v):
            fitted[through.name] = Uniform(scale, zero, bits)
    return applied(graph, found), fitted


class FloatRun(Simulation):
    """The same graph without quantizers."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph, 0, 0, False)

    def compute(self, v: Value, operands: Sequence[Tensor]) -> Tensor:
        return torch.from_numpy(np.array(v.op.data)) if isinstance(v.op, Const) else batched(partial(compute, v), v, operands)


# --- what is measured ---------------------------------------------------------------------------------------------------


def float_graph(path: Path) -> Graph:
    """The network as the compiler sees it before anything is quantized."""
    declined = Declined()
    return legalize(simplify(import_model(path), declined), declined)


def images(data: Data, count: int | None) -> Iterator[Tensor]:
    """Batches of evaluation inputs."""
    rows = [next(iter(f.values())) for f in data.first(count)]
    for i in range(0, len(rows), BATCH):
        yield torch.from_numpy(np.stack(rows[i : i + BATCH]))


@torch.no_grad()
def accuracy(task: Task, data: Data, precision: str, repq: bool, limit: int | None) -> float:
    """Top-1 of the simulation."""
    w, a = (int(n) for n in precision.removeprefix("w").split("a"))
    calibration = torch.from_numpy(np.stack([next(iter(f.values())) for f in data.calibration[:SAMPLES]]))
    simulation = simulated(float_graph(task.path), calibration, w, a, repq)
    return data.judge([row.numpy() for batch in images(data, limit) for row in simulation(batch)[0]])


def float_accuracy(task: Task, data: Data, limit: int | None) -> float:
    """Top-1 of the float network in onnxruntime."""
    s = session(str(task.path), threads=0)
    return data.judge([np.asarray(s.run(None, dict(x))[0]) for x in data.first(limit)])


def programs(path: Path | None) -> dict[tuple[str, str], Mapping[str, Any]]:
    """(network, precision) -> a row that `benchmarks.transformers` has measured."""
    rows = json.loads(path.read_text())["rows"] if path else []
    return {(r["name"], r["precision"]): r for r in rows if not r["error"]}


def markdown(rows: Sequence[tuple[str, str, float, Mapping[str, float]]], ours: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
    """The table: top-1, and in brackets what is lost against float."""
    methods = list(rows[0][3])
    lines = [
        f"| network | precision | float | {' | '.join(f'simulated {m}' for m in methods)} | integer program |",
        "|" + "---|" * (len(methods) + 4),
    ]
    for name, precision, floats, found in rows:
        program = ours.get((name, precision))
        last = f"{program['ours']:.1f} ({program['loss']:+.1f})" if program else "-"
        cells = [f"{found[m]:.1f} ({floats - found[m]:+.1f})" for m in methods]
        lines.append(f"| {name} | {precision} | {floats:.1f} | {' | '.join(cells)} | {last} |")
    return "\n".join(lines)


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(NETWORKS))
@click.option("--precision", "precisions", multiple=True, default=PRECISIONS, help="May be repeated.")
@click.option("--method", "methods", multiple=True, type=click.Choice(("minmax", "repq")), default=("minmax", "repq"), help="May be repeated.")
@click.option("--limit", type=int, help="Evaluate on the first so many images only.")
@click.option("--beside", type=click.Path(exists=True, path_type=Path), help="Figures of the integer programs.")
def main(names: tuple[str, ...], precisions: tuple[str, ...], methods: tuple[str, ...], limit: int | None, beside: Path | None) -> None:
    """Simulate the networks (both by default)."""
    rows = []
    for task in (SEQUENCE_NETWORKS[name] for name in names or NETWORKS):
        data = task.load()
        floats = float_accuracy(task, data, limit)
        for precision in precisions:
            found = {m: accuracy(task, data, precision, m == "repq", limit) for m in methods}
            click.echo(f"{task.name} {precision} float {floats} {found}", err=True)
            rows.append((task.name, precision, floats, found))
    click.echo(markdown(rows, programs(beside)))


if __name__ == "__main__":
    main()
