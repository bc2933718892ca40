"""The road from a float graph to integers, in order. This file is the figure of the method; each step has its own file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import chain, islice

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import UnsupportedModel, UsageError
from qcompiler.ir.graph import Declined, Graph, Value
from qcompiler.ir.ops import ArgMax, Conv
from qcompiler.ir.pointwise import Clip, Unary
from qcompiler.ir.sequence import Attention, Normalize
from qcompiler.ir.types import Quantization
from qcompiler.ir.verify import Stage, verify

from .calibrate import Statistics, calibrate, samples
from .calibrate.choose import DEFAULT, Method, MinMax, Mse, choose
from .calibrate.codebook import codebook
from .clip_channels import clip_channels
from .covariances import covariances
from .distill import Distilled, Progress, distill, parts_of
from .equalize import equalize
from .equalize_attention import equalize_attention
from .given_scales import given_scales, refused_pairs, saturating_pairs
from .insert_qdq import insert_qdq, share
from .legalize import legalize
from .lower import lower_to_integers
from .precision.plan import Plan
from .prove_ranges import Bound, prove_ranges
from .quantize_weights import QuantizedWeights
from .relax_clips import relax_clips
from .reparameterize import NOT_REPARAMETERIZED, reparameterize
from .scheme import PLAIN, Scheme
from .simplify import simplify
from .split_normalizations import split_normalizations
from .storage_points import is_movement, is_stored, storage_points
from .stored_errors import stored_errors
from .transfer import transferred
from .unary_function import sole_function
from .watch import watched
from .wide_values import streams, wide_values
from .widths import NARROW, activation_widths, weight_widths

Batches = Iterable[Mapping[str, NDArray[np.generic]]]


PREVIEW_SAMPLES = 32
"""So many batches show the ranges of channels for equalization."""
LOOKED_AT, KEPT = 128, 512
"""Where weights have few bits: samples for covariances, and for distillation."""
NOT_DISTILLED = "weights of few bits are rounded layer by layer, not by the answers of the network"
OUTPUT_MARGIN = 0.25


@dataclass(frozen=True)
class Options:
    """What a user may choose of the quantization; the defaults need no choice on convolutional networks."""

    method: Method = DEFAULT
    equalize: bool = True
    reparameterize: bool = True
    """RepQuant: even channels of normalizations, queries, keys and values (`reparameterize`, `equalize_attention`)."""
    clip_channels: bool = False
    """RepQuant's search of both ends of every channel (`clip_channels`), below 8 bits: better on one vision transformer, worse on another."""
    correct_bias: bool = True
    second_order: bool = True
    """Round weights by the covariance of what they multiply (`round_weights`)."""
    weight_bits: int = 8
    """7: convolution weights in [-63, 63]. On CPUs whose dot product goes through 16-bit sums (AVX2 without VNNI, plain NEON) that is faster."""
    weight_groups: bool = True
    """Weights of at most four bits have a multiplier for every 32 along K (`weight_grid`): closer, in half the bytes, at the speed of eight bits."""
    distill: bool = True
    """Tune weights of few bits to the answers of the float network (`distill`), where torch is installed."""
    activation_bits: int = 8
    """Of what dot products read; see `widths`."""
    plan: Plan | None = None
    """Bits layer by layer, instead of the two above."""
    few_bits: bool = False
    """Whether some weights will have few, though neither of the above says so yet."""
    scheme: Scheme = PLAIN
    """What scales and zero points may be."""


@dataclass(frozen=True)
class Quantized:
    """The graphs of one network at every stage, with the overflow proof and the reasons of what was not done."""

    float_graph: Graph
    qdq_graph: Graph
    integer_graph: Graph
    bounds: Mapping[Value, Bound]
    declined: Declined = field(repr=False)
    _insert: Callable[..., Graph] = field(repr=False)
    distilled: Distilled | None = field(default=None, repr=False)
    """Where weights were tuned to the answers of the float network, the losses before and after."""

    @property
    def reparameterized(self) -> tuple[str, ...]:
        """The names of the normalizations whose channels were evened; `declined` holds a reason for each of the others."""
        left = {name for name, reason in self.declined.reasons if reason.startswith(NOT_REPARAMETERIZED)}
        return tuple(v.name for v in self.float_graph.order if isinstance(v.op, Normalize) and v.name not in left)

    @cached_property
    def exchange_graph(self) -> Graph:
        """The Q/DQ graph with every convolution's result quantized, as other tools expect it."""
        return verify(watched("insert_qdq-exchange", self._insert(spell_out=True)), Stage.qdq)


def quantize(
    graph: Graph, batches: Batches, options: Options = Options(), progress: Callable[[int], None] | None = None, phases: Progress | None = None
) -> Quantized:
    """Quantize an imported float graph, with calibration data; `progress` hears the number of samples seen, `phases` what else takes time.

    Raises UnsupportedModel where an operator has no integer form, UsageError where the data does not fit, and ProofError
    where an overflow cannot be excluded.
    """
    return quantize_lengths((graph,), batches, options, progress, phases)[0]


def quantize_lengths(
    graphs: Sequence[Graph],
    batches: Batches,
    options: Options = Options(),
    progress: Callable[[int], None] | None = None,
    phases: Progress | None = None,
) -> tuple[Quantized, ...]:
    """As `quantize`, one network imported for several shapes; `batches` are of the shapes of the first, whose scales and weights all get."""
    declined = Declined()
    simple = legal(graphs[0], declined)
    kept, batches = split_off(batches, KEPT if few_bits(simple, options) else PREVIEW_SAMPLES)
    preview = kept[:PREVIEW_SAMPLES]
    shown = calibrate(simple, preview, storage_points(simple)) if options.equalize or options.reparameterize else {}
    if options.clip_channels:
        widths = activation_widths(simple, options.activation_bits, options.plan)
        shown = clip_channels(simple, shown, widths, _looked_at(simple, preview))
    even = evened(simple, shown, options, declined)
    if options.plan is not None:
        options.plan.check(even)
    seen = observed(even, kept, batches, options, progress)
    made = distilled(even, seen, options, declined, _looked_at(even, kept, KEPT), phases)
    seen = seen if made.distilled is None else replace(seen, rounded=transferred_names(made.distilled.weights, even))
    return made, *(_replayed(g, simple, shown, even, seen, options) for g in graphs[1:])


@dataclass(frozen=True)
class Measured:
    """The canonical form of a network and what calibration data say of it: quantized in any scheme without looking at the data again."""

    graph: Graph
    statistics: Mapping[Value, Statistics]
    means: Mapping[Value, NDArray[np.float64]] | None
    covariances: Mapping[Value, NDArray[np.float64]] | None

    def observed(self, options: Options) -> Observed:
        """Scales by the method and within the scheme of `options`."""
        bits, plan = options.activation_bits, options.plan
        quantization = choose_all(self.graph, self.statistics, options.method, bits, plan, options.scheme)
        return Observed(quantization, self.means, self.covariances)


def measured(graph: Graph, batches: Batches, options: Options, progress: Callable[[int], None] | None = None) -> Measured:
    """An imported `graph` in canonical form, on calibration data."""
    declined = Declined()
    simple = legal(graph, declined)
    preview, batches = split_off(batches, PREVIEW_SAMPLES)
    even = evened(simple, calibrate(simple, preview, storage_points(simple)), options, declined)
    return _measured(even, preview, batches, options, progress)


def exchange_graph(found: Measured, options: Options) -> Graph:
    """The Q/DQ graph for other tools alone, in a scheme that need not have integer kernels here: activations of 16 bits, say."""
    insert = _inserting(found.graph, found.observed(options), options)
    return verify(watched("insert_qdq-exchange", insert(spell_out=True)), Stage.qdq)


def _replayed(graph: Graph, first: Graph, shown: Mapping[Value, Statistics], even: Graph, seen: Observed, options: Options) -> Quantized:
    """`graph` quantized as another form of the same network was: `shown` of `first`, `seen` of `even`."""
    declined = Declined()
    simple = legal(graph, declined)
    simple = evened(simple, transferred(shown, first, simple, storage_points(simple)), options, declined)
    return quantized(simple, seen.transferred(even, simple), options, declined)


def legal(graph: Graph, declined: Declined) -> Graph:
    """The canonical form of an imported graph."""
    simple = simplify(watched("import", graph, Stage.float), declined)
    simple = split_normalizations(legalize(simple, declined))
    if problems := refused_pairs(simple):
        raise UnsupportedModel(problems)
    return verify(watched("legalize", simple), Stage.float)


@dataclass(frozen=True)
class Observed:
    """What calibration says of a graph: scales, the means of what convolutions read, and the covariances of what weights multiply."""

    quantization: Mapping[Value, Quantization]
    means: Mapping[Value, NDArray[np.float64]] | None
    covariances: Mapping[Value, NDArray[np.float64]] | None
    errors: Mapping[Value, NDArray[np.float64]] | None = None
    """Of means, by storing (`stored_errors`)."""
    rounded: Mapping[Value, QuantizedWeights] | None = None
    """Weights that are decided."""

    def transferred(self, graph: Graph, other: Graph) -> Observed:
        """The same of another form of the network."""
        means = None if self.means is None else transferred(self.means, graph, other)
        h = None if self.covariances is None else transferred(self.covariances, graph, other)
        errors = None if self.errors is None else transferred(self.errors, graph, other)
        rounded = None if self.rounded is None else transferred(self.rounded, graph, other)
        return Observed(transferred(self.quantization, graph, other, storage_points(other)), means, h, errors, rounded)


def observed(graph: Graph, preview: Batches, batches: Batches, options: Options, progress: Callable[[int], None] | None) -> Observed:
    """What `batches` say of the canonical `graph`, the first of them being `preview`."""
    found = _measured(graph, preview, batches, options, progress).observed(options)
    if not options.correct_bias:
        return found
    return replace(found, errors=stored_errors(graph, found.quantization, _looked_at(graph, preview)))


def _measured(graph: Graph, preview: Batches, batches: Batches, options: Options, progress: Callable[[int], None] | None) -> Measured:
    statistics = calibrate(graph, batches, storage_points(graph), progress)
    means = _means(graph, statistics) if options.correct_bias else None
    looked_at = _looked_at(graph, preview, LOOKED_AT if few_bits(graph, options) else PREVIEW_SAMPLES)
    if options.distill and few_bits(graph, options) and not options.few_bits:
        looked_at = parts_of(looked_at)[0]  # what is held out judges second-order rounding too
    return Measured(graph, statistics, means, covariances(graph, looked_at) if options.second_order else None)


def _looked_at(graph: Graph, preview: Batches, most: int = PREVIEW_SAMPLES) -> list[dict[str, NDArray[np.generic]]]:
    return list(islice((s for batch in preview for s in samples(graph, batch)), most))


def few_bits(graph: Graph, options: Options) -> bool:
    """Whether weights of some layer may have few."""
    return options.few_bits or min(weight_widths(graph, options.weight_bits, options.plan).values(), default=8) <= NARROW


def distilled(
    graph: Graph,
    seen: Observed,
    options: Options,
    declined: Declined,
    looked_at: Sequence[Mapping[str, NDArray[np.generic]]],
    phases: Progress | None = None,
) -> Quantized:
    """As `quantized`; weights of few bits are then tuned to the answers of the float network (`distill`), where that makes them better."""
    made = quantized(graph, seen, options, declined)
    widths = {v.name: bits for v, bits in weight_widths(graph, options.weight_bits, options.plan).items()}
    if min(widths.values(), default=8) > NARROW or not options.distill:
        return made
    read = seen.means or {}
    means = {v.name: read[v.inputs[0]] for v in graph.order if isinstance(v.op, Conv) and v.inputs[0] in read}
    found = distill(graph, made.qdq_graph, widths, looked_at, phases, means=means)
    if isinstance(found, str) or not found.better:
        why = found if isinstance(found, str) else f"no better on held-out samples, {found.before:.4f} and {found.after:.4f} nats"
        declined(graph.outputs[0], f"{NOT_DISTILLED}: {why}")
        return made
    again = quantized(graph, replace(seen, rounded=transferred_names(found.weights, graph)), options, Declined())
    return replace(again, declined=declined, distilled=found)


def transferred_names(known: Mapping[str, QuantizedWeights], graph: Graph) -> dict[Value, QuantizedWeights]:
    """What is known by name, of the values of `graph`."""
    return {v: known[v.name] for v in graph.order if isinstance(v.op, Conv) and v.name in known}


def quantized(graph: Graph, seen: Observed, options: Options, declined: Declined) -> Quantized:
    """The stages behind calibration. UsageError where the scheme has no integer kernels."""
    if options.scheme.bits > 8:
        raise UsageError(
            f"expected activations of 8 bits for a compiled program, found {options.scheme.bits}; the targets onnx-qdq:PROFILE write such graphs"
        )
    insert = _inserting(graph, seen, options)
    qdq = verify(watched("insert_qdq", insert(declined)), Stage.qdq)
    integer = verify(watched("lower", lower_to_integers(qdq)), Stage.integer)
    bounds = prove_ranges(integer)
    if problems := saturating_pairs(graph, integer, bounds):
        raise UnsupportedModel(problems)
    return Quantized(graph, qdq, integer, bounds, declined, insert)


def _inserting(graph: Graph, seen: Observed, options: Options) -> Callable[..., Graph]:
    widths = weight_widths(graph, options.weight_bits, options.plan)
    insert = partial(insert_qdq, graph, seen.quantization, seen.means, covariances=seen.covariances, stored_errors=seen.errors)
    return partial(insert, widths=widths, scheme=options.scheme, weight_groups=options.weight_groups, rounded=seen.rounded)


def evened(graph: Graph, shown: Mapping[Value, Statistics], options: Options, declined: Declined) -> Graph:
    """The same function with channels of more equal ranges, `shown` on some samples."""
    if options.equalize:
        graph = relax_clips(graph, shown)
        graph = watched(
            "equalize", equalize(graph, by_name(graph, shown), declined, options.scheme.per_channel, few_bits(graph, options)), Stage.float
        )
    if options.reparameterize:
        graph = watched("reparameterize", reparameterize(graph, by_name(graph, shown), declined), Stage.float)
        graph = watched("equalize_attention", equalize_attention(graph, by_name(graph, shown), declined), Stage.float)
    else:
        for v in (v for v in graph.order if isinstance(v.op, Normalize)):
            declined(v, f"{NOT_REPARAMETERIZED}: the method is plain")
    return graph


def choose_all(
    graph: Graph, statistics: Mapping[Value, Statistics], method: Method, bits: int = 8, plan: Plan | None = None, scheme: Scheme = PLAIN
) -> dict[Value, Quantization]:
    """The quantization of every stored value, equal where values share one.

    Outputs of the network are not clipped but given a margin: where the greatest of them saturate, answers tie.
    """
    wide = wide_values(graph) if scheme.streams and scheme.bits == 8 else frozenset[Value]()
    narrow = dict.fromkeys(statistics, scheme.bits) if scheme.bits > 8 else activation_widths(graph, bits, plan)
    widths = narrow | dict.fromkeys(wide, 16)
    chosen = {v: _choice(graph, v, s, method, widths[v], scheme) for v, s in statistics.items()}
    return share(graph, chosen, [*streams(graph, wide), *_alike(graph, scheme)], scheme, given_scales(graph))


def _alike(graph: Graph, scheme: Scheme) -> list[tuple[Value, Value]]:
    """(result, operand) pairs that the scheme wants in one scale."""
    pairs = [(v, x) for v in graph.order if type(v.op).__name__ in scheme.same for x in v.inputs]
    return [(v, x) for v, x in pairs if is_stored(graph, v) and is_stored(graph, x)]


def _choice(graph: Graph, v: Value, s: Statistics, method: Method, bits: int, scheme: Scheme) -> Quantization:
    if bits > scheme.bits:
        return wide_quantization(s, scheme)
    if v in graph.outputs or any(isinstance(u.op, ArgMax) for u in graph.uses[v]):
        return widened(choose(s, MinMax(), bits, scheme), OUTPUT_MARGIN, scheme)
    if bits < 8 and scheme == PLAIN and isinstance(v.op, Unary) and not isinstance(v.op, Clip):
        return codebook(s, bits)
    # Symmetric: below zero lie idle levels of all that is never negative. Of fewer bits in effect, more is worth clipping.
    if isinstance(method, Mse) and (scheme.symmetric or is_compared(graph, v)):
        method = replace(method, power=2.0)
    return choose(s, method, bits, scheme, sole_function(graph, v) if bits <= 8 else None)


def is_compared(graph: Graph, v: Value) -> bool:
    """Whether attention reads `v`, perhaps moved. Logits add up so many errors of queries and keys that their variance is what counts."""
    return any(isinstance(u.op, Attention) or (is_movement(u) and is_compared(graph, u)) for u in graph.uses[v])


def wide_quantization(s: Statistics, scheme: Scheme = PLAIN) -> Quantization:
    """16 bits, symmetric: what was seen reaches 2^14 with the margin, beyond which `requantize_wide` may saturate."""
    reach = max(-s.min, s.max) * (1 + OUTPUT_MARGIN)
    return Quantization.per_tensor(scheme.step(float(np.float32(reach / 2**14))) if reach > 0 else 1.0, 0, 16)


def widened(q: Quantization, margin: float, scheme: Scheme = PLAIN) -> Quantization:
    """The same zero point and a coarser scale; a power of two, which reached up already, stays."""
    if scheme.power_of_two:
        return q
    return Quantization.per_tensor(float(np.float32(q.scale[0] * (1 + margin))), q.zero_point[0], q.bits)


def split_off(batches: Batches, count: int) -> tuple[list[Mapping[str, NDArray[np.generic]]], Batches]:
    """The first batches, up to `count` of them, and all of them: read once, the rest still streaming."""
    stream = iter(batches)
    first = list(islice(stream, count))
    return first, chain(first, stream)


def by_name(graph: Graph, statistics: Mapping[Value, Statistics]) -> dict[Value, Statistics]:
    """The statistics of values of the same names in a rewritten graph."""
    known = {v.name: s for v, s in statistics.items()}
    return {v: known[v.name] for v in storage_points(graph) if v.name in known}


def _means(graph: Graph, statistics: Mapping[Value, Statistics]) -> dict[Value, NDArray[np.float64]]:
    """E[x] per channel for what convolutions read."""
    read = {v.inputs[0] for v in graph.order if isinstance(v.op, Conv)}
    return {v: statistics[v].channel_mean for v in read if v in statistics}
