"""The road from a float graph to integers, in order. This file is the figure of the method; each step has its own file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import chain, islice
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from qcompiler.errors import UnsupportedModel, UsageError
from qcompiler.ir.graph import Declined, Graph, Value
from qcompiler.ir.ops import ArgMax, Concat, Conv
from qcompiler.ir.pointwise import Clip, Max, Min, Unary
from qcompiler.ir.sequence import Attention, Normalize
from qcompiler.ir.types import Quantization
from qcompiler.ir.verify import Stage, verify

from .calibrate import Statistics, calibrate, samples
from .calibrate.choose import DEFAULT, Method, MinMax, Mse, choose
from .calibrate.codebook import codebook
from .clip_channels import clip_channels
from .count_steps import count_steps
from .covariances import covariances, of_few_windows, windows
from .distill import EVERY, PRODUCTS, Distilled, Progress, distill, parts_of
from .equalize import equalize
from .equalize_attention import equalize_attention
from .given_scales import given_scales, refused_pairs, saturating_pairs
from .input_levels import Levels, input_levels
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
from .wide_bits import MARGIN, report_fewer_bits, wide_bits, wide_quantization
from .wide_readers import check_readers, wide_readers
from .wide_values import streams, wide_values
from .widths import NARROW, activation_widths, weight_widths

Batches = Iterable[Mapping[str, NDArray[np.generic]]]


PREVIEW_SAMPLES = 32
"""So many batches show the ranges of channels for equalization."""
LOOKED_AT, KEPT = 128, 512
"""Where weights have few bits: samples for covariances, and for distillation."""
NOT_DISTILLED = "weights of few bits are rounded layer by layer, not by the answers of the network"


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
    """Weights of at most four bits have a multiplier for every four along K (`weight_grid`): closer, in little more than half the bytes."""
    distill: bool = True
    """Tune weights of few bits to the answers of the float network (`distill`), where torch is installed."""
    activation_bits: int = 8
    """Of what dot products read; see `widths`, and `wide_readers` for 16."""
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
    levels = levels_of(simple, preview, options)
    simple = counted(simple, levels, declined)
    shown = calibrate(simple, preview, storage_points(simple)) if options.equalize or options.reparameterize else {}
    if options.clip_channels:
        widths = activation_widths(simple, options.activation_bits, options.plan)
        shown = clip_channels(simple, shown, widths, _looked_at(simple, preview))
    even = evened(simple, shown, options, declined)
    if options.plan is not None:
        options.plan.check(even)
    check_readers(even, options.activation_bits, options.plan, options.scheme, declined)
    seen = observed(even, kept, batches, options, progress)
    made = distilled(even, seen, options, declined, _looked_at(even, kept, KEPT), phases)
    seen = seen if made.distilled is None else replace(seen, rounded=transferred_names(made.distilled.weights, even))
    return made, *(_replayed(g, simple, levels, shown, even, seen, options) for g in graphs[1:])


@dataclass(frozen=True)
class Measured:
    """The canonical form of a network and what calibration data say of it: quantized in any scheme without looking at the data again."""

    graph: Graph
    statistics: Mapping[Value, Statistics]
    means: Mapping[Value, NDArray[np.float64]] | None
    covariances: Mapping[Value, NDArray[np.float64]] | None
    levels: Mapping[Value, Quantization]
    """Of inputs that one step and zero point store exactly."""

    def observed(self, options: Options) -> Observed:
        """Scales by the method and within the scheme of `options`."""
        readers, asked = (_readers(self.graph, options, light) for light in (True, False))
        levels = self.levels if options.scheme == PLAIN else {}
        quantization = choose_all(self.graph, self.statistics, options, readers, levels)
        spelled = choose_all(self.graph, self.statistics, options, asked, levels) if asked != readers else quantization
        return Observed(quantization, self.means, self.covariances, spelled={v: q for v, q in spelled.items() if q != quantization[v]})


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


def _replayed(
    graph: Graph, first: Graph, levels: Mapping[str, Levels], shown: Mapping[Value, Statistics], even: Graph, seen: Observed, options: Options
) -> Quantized:
    """`graph` quantized as another form of the same network was: `levels` and `shown` of `first`, `seen` of `even`."""
    declined = Declined()
    simple = counted(legal(graph, declined), levels, declined)
    simple = evened(simple, transferred(shown, first, simple, storage_points(simple)), options, declined)
    return quantized(simple, seen.transferred(even, simple), options, declined)


def legal(graph: Graph, declined: Declined) -> Graph:
    """The canonical form of an imported graph."""
    simple = simplify(watched("import", graph, Stage.float), declined)
    simple = split_normalizations(legalize(simple, declined))
    if problems := refused_pairs(simple):
        raise UnsupportedModel(problems)
    return verify(watched("legalize", simple), Stage.float)


def levels_of(graph: Graph, preview: Batches, options: Options) -> dict[str, Levels]:
    """The levels of the inputs that have some. Other schemes than ours have one scale for an input, which fits ranges."""
    if options.scheme != PLAIN:
        return {}
    looked_at = _looked_at(graph, preview)
    found = {v.name: input_levels([s[v.name] for s in looked_at]) for v in graph.inputs if v.type.dtype.is_float}
    return {name: levels for name, levels in found.items() if levels is not None}


def counted(graph: Graph, levels: Mapping[str, Levels], declined: Declined) -> Graph:
    """The canonical `graph` with inputs of several channels counted in the steps of each."""
    return verify(watched("count_steps", count_steps(graph, levels, declined)), Stage.float)


@dataclass(frozen=True)
class Observed:
    """What calibration says of a graph: scales, the means of what convolutions read, and the covariances of what weights multiply."""

    quantization: Mapping[Value, Quantization]
    means: Mapping[Value, NDArray[np.float64]] | None
    covariances: Mapping[Value, NDArray[np.float64]] | None
    errors: Mapping[Value, NDArray[np.float64]] | None = None
    """Of means, by storing (`stored_errors`)."""
    spelled: Mapping[Value, Quantization] = field(default_factory=dict)
    """What other tools are given instead: 8 bits where 16 are merely light here."""
    rounded: Mapping[Value, QuantizedWeights] | None = None
    """Weights that are decided."""

    def narrowed(self, graph: Graph, options: Options) -> Observed:
        """With the 8 bits that other tools are given where 16 are light only beside weights of more bits than these `options` have."""
        kept = wide_values(graph, _readers(graph, options)) if self.spelled else self.spelled.keys()
        changed = {v: q for v, q in self.spelled.items() if v not in kept}
        errors = self.errors and {v: e for v, e in self.errors.items() if v not in changed}
        left = {v: q for v, q in self.spelled.items() if v in kept}
        return replace(self, quantization={**self.quantization, **changed}, errors=errors, spelled=left)

    def transferred(self, graph: Graph, other: Graph) -> Observed:
        """The same of another form of the network."""
        means = None if self.means is None else transferred(self.means, graph, other)
        h = None if self.covariances is None else transferred(self.covariances, graph, other)
        errors = None if self.errors is None else transferred(self.errors, graph, other)
        quantization, spelled = transferred(self.quantization, graph, other, storage_points(other)), transferred(self.spelled, graph, other)
        rounded = None if self.rounded is None else transferred(self.rounded, graph, other)
        return Observed(quantization, means, h, errors, spelled, rounded)


def observed(graph: Graph, preview: Batches, batches: Batches, options: Options, progress: Callable[[int], None] | None) -> Observed:
    """What `batches` say of the canonical `graph`, the first of them being `preview`."""
    found = _measured(graph, preview, batches, options, progress).observed(options)
    if not options.correct_bias:
        return found
    return replace(found, errors=stored_errors(graph, found.quantization, _looked_at(graph, preview)))


def _measured(graph: Graph, preview: Batches, batches: Batches, options: Options, progress: Callable[[int], None] | None) -> Measured:
    looked_at = _looked_at(graph, preview, LOOKED_AT if few_bits(graph, options) else PREVIEW_SAMPLES)
    held_out = EVERY if options.distill and few_bits(graph, options) and not options.few_bits else 0
    if held_out:
        looked_at = parts_of(looked_at)[0]  # what is held out judges second-order rounding too
    few = of_few_windows(graph, len(looked_at)) if options.second_order else {}
    numbers = dict.fromkeys(few, 0)

    def gather(x: Value, data: NDArray[np.floating]) -> None:
        for v in (u for u in graph.uses[x] if u in few and u.inputs[0] is x):
            numbers[v] += 1
            if not held_out or numbers[v] % held_out:
                few[v].add(windows(v, data))

    statistics = calibrate(graph, batches, storage_points(graph), progress, gather)
    means = _means(graph, statistics) if options.correct_bias else None
    found = levels_of(graph, preview, options)
    levels = {v: q for v in graph.inputs if v.name in found and (q := found[v.name].quantization) is not None}
    known = covariances(graph, looked_at) if options.second_order else None
    if known is not None:
        known |= {v: moments.covariance() for v, moments in few.items() if moments.count}
    return Measured(graph, statistics, means, known, levels)


def _readers(graph: Graph, options: Options, light: bool = True) -> frozenset[Value]:
    few = frozenset(v for v, bits in weight_widths(graph, options.weight_bits, options.plan).items() if bits <= NARROW)
    return wide_readers(graph, options.activation_bits, options.plan, options.scheme, light, few)


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
    products: float = PRODUCTS,
) -> Quantized:
    """As `quantized`; weights of few bits are then tuned to the answers of the float network (`distill`), where that makes them better."""
    made = quantized(graph, seen, options, declined)
    widths = {v.name: bits for v, bits in weight_widths(graph, options.weight_bits, options.plan).items()}
    if min(widths.values(), default=8) > NARROW or not options.distill:
        return made
    read = seen.means or {}
    means = {v.name: read[v.inputs[0]] for v in graph.order if isinstance(v.op, Conv) and v.inputs[0] in read}
    found = distill(graph, made.qdq_graph, widths, looked_at, phases, products, means)
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
    seen = seen.narrowed(graph, options)
    report_fewer_bits(graph, seen.quantization, declined)
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
    insert = partial(insert, spelled=seen.spelled)
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
    graph: Graph,
    statistics: Mapping[Value, Statistics],
    options: Options,
    readers: frozenset[Value],
    levels: Mapping[Value, Quantization] = MappingProxyType({}),
) -> dict[Value, Quantization]:
    """The quantization of every stored value, equal where values share one; `readers` read 16 bits (`wide_readers`), inputs have their `levels`.

    Outputs of the network are not clipped but given a margin: where the greatest of them saturate, answers tie.
    """
    scheme = options.scheme
    wide = wide_values(graph, readers) if scheme.streams and scheme.bits == 8 else frozenset[Value]()
    every = dict.fromkeys(statistics, scheme.bits)
    narrow = every if scheme.bits > 8 else activation_widths(graph, options.activation_bits, options.plan)
    widths = narrow | wide_bits(graph, wide, readers, statistics)
    chosen = {v: _choice(graph, v, s, options.method, widths[v], scheme) for v, s in statistics.items()}
    exact = {v: q for v, q in levels.items() if widths.get(v) == q.bits and not _is_joined(graph, v)}
    return share(graph, chosen, [*streams(graph, wide), *_alike(graph, scheme)], scheme, exact | given_scales(graph))


def _is_joined(graph: Graph, v: Value) -> bool:
    """Whether `v` shares its scale with something that other values are part of: their range counts as well then."""
    return any(isinstance(u.op, (Concat, Max, Min)) or (is_movement(u) and _is_joined(graph, u)) for u in graph.uses[v])


def _alike(graph: Graph, scheme: Scheme) -> list[tuple[Value, Value]]:
    """(result, operand) pairs that the scheme wants in one scale."""
    pairs = [(v, x) for v in graph.order if type(v.op).__name__ in scheme.same for x in v.inputs]
    return [(v, x) for v, x in pairs if is_stored(graph, v) and is_stored(graph, x)]


def _choice(graph: Graph, v: Value, s: Statistics, method: Method, bits: int, scheme: Scheme) -> Quantization:
    if bits > scheme.bits:
        return wide_quantization(s, scheme, bits)
    if v in graph.outputs or any(isinstance(u.op, ArgMax) for u in graph.uses[v]):
        return widened(choose(s, MinMax(), bits, scheme), MARGIN, scheme)
    if bits < 8 and scheme == PLAIN and isinstance(v.op, Unary) and not isinstance(v.op, Clip):
        return codebook(s, bits)
    # Symmetric: below zero lie idle levels of all that is never negative. Of fewer bits in effect, more is worth clipping.
    if isinstance(method, Mse) and (scheme.symmetric or is_compared(graph, v)):
        method = replace(method, power=2.0)
    return choose(s, method, bits, scheme, sole_function(graph, v) if bits <= 8 else None)


def is_compared(graph: Graph, v: Value) -> bool:
    """Whether attention reads `v`, perhaps moved. Logits add up so many errors of queries and keys that their variance is what counts."""
    return any(isinstance(u.op, Attention) or (is_movement(u) and is_compared(graph, u)) for u in graph.uses[v])


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
