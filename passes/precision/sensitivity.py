"""What fewer bits cost: each layer changed alone, the others in float, and how changes act together.

    loss_i     measured mean loss (`loss.py`) with layer l in width b, i = (l, b)
    noise_i    E |dy_i|^2 / E |y|^2                                     of the output; -10 log10 of it is the SQNR
    G_ij       E <h_i, h_j>                                             h_i the directions of the change
    joint      sum_i loss_i + sum_{i != j} G_ij                         of several changes

Where the right answers of samples are known, loss_i has the excess of the change, too (`labels.py`).

G needs no run but the single ones: interactions of second order (as in "Augmenting Hessians with Inter-Layer Dependencies for
Mixed-Precision Post-Training Quantization", 2023, which measures pairs) are products of directions in the answers, for all pairs of layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

from qcompiler.ir.graph import Graph

from .labels import Right, shrunk
from .loss import Judge
from .resume import Kept, Sums, digest
from .simulate import Array, Feeds, Simulation, Weights, weights_of

Floats = NDArray[np.float64]
SURE = 0.5
"""The part of the divergence that is counted whatever labels say: that a change helps a network is no reason to make it."""
Change = tuple[str, int]
"""A layer, and the bits of its weights."""
Forms = Mapping[int, Mapping[str, Weights]]
"""Bits -> layer -> its weights rounded to so many bits, of layers that may have them."""


@dataclass(frozen=True)
class Sensitivities:
    """One row per change; `pairs` is G."""

    changes: tuple[Change, ...]
    loss: Floats
    noise: Floats
    pairs: Floats

    def joint(self, chosen: Sequence[int]) -> float:
        """The expected loss of the changes of these indices together."""
        at = np.asarray(chosen, int)
        block = self.pairs[np.ix_(at, at)]
        return float(self.loss[at].sum() + block.sum() - np.trace(block))


def changes_of(forms: Forms) -> list[Change]:
    """Layer by layer."""
    layers = dict.fromkeys(layer for of_bits in forms.values() for layer in of_bits)
    return [(layer, bits) for layer in layers for bits in forms if layer in forms[bits]]


def measure_sensitivities(
    network: Simulation,
    forms: Forms,
    samples: Sequence[Feeds],
    judge: Judge,
    progress: Callable[[int], None] | None = None,
    folder: Path | None = None,
    rights: Sequence[Right] = (),
) -> Sensitivities:
    """Of every layer in every width of `forms`; `progress` hears how many runs of the network are done, `rights` are labels of all samples or none.

    Sums over samples are kept in `folder` as they grow, under the digest of all that they depend on; there a run that was interrupted goes on.
    """
    changes = changes_of(forms)
    n = len(changes)
    kept = None if folder is None else Kept(folder, digest(network.graph, forms, samples, judge, rights))
    sums = (None if kept is None else kept.read()) or Sums.none(n)
    for number in range(sums.samples, len(samples)):
        (y,) = network.variants(samples[number], [{}])
        others = list[Array]()
        for answer in network.variants(samples[number], ({layer: forms[bits][layer]} for layer, bits in changes)):
            others.append(answer)
            if progress is not None:
                progress(number * n + len(others))
        sums = sums.plus(y, others, judge, rights[number] if rights else None)
        if kept is not None:
            kept.write(sums)
    return Sensitivities(tuple(changes), _losses(sums), sums.noise / (sums.power or 1.0), sums.pairs / len(samples))


def _losses(sums: Sums) -> Floats:
    """Mean losses, with the excess where labels are known."""
    n = sums.samples
    excess = sums.excess / n
    spread = np.maximum(sums.excess_squared / n - excess**2, 0) / max(n - 1, 1)
    return np.asarray(np.maximum(sums.loss / n + shrunk(excess, np.sqrt(spread)), SURE * sums.loss / n))


def rank_correlations(found: Sensitivities, truth: Floats, others: Mapping[str, Floats] = MappingProxyType({})) -> dict[str, float]:
    """Kendall's tau of each estimate, `others` among them, with the measured loss of single changes: which to trust on this network."""
    estimates = {"KL": found.loss, "second order": np.diagonal(found.pairs), "SQNR": found.noise, **others}
    return {name: float(kendalltau(e, truth).statistic) for name, e in estimates.items()}


def weight_errors(network: Graph, forms: Forms) -> Floats:
    """Mean squared error of the weights of every change, in units of the layer's own: |D|^2 / |W|^2."""
    own = weights_of(network)
    pairs = [(own[layer][0].astype(np.float64), forms[bits][layer][0]) for layer, bits in changes_of(forms)]
    return np.array([((w - other) ** 2).sum() / ((w**2).sum() or 1.0) for w, other in pairs])
