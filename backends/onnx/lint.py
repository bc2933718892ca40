"""Judges a Q/DQ model by a profile: what the toolchain would refuse or misread (violations), and what would run in float (fallbacks)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from qcompiler.ir.types import DType
from qcompiler.passes.scheme import is_power_of_two
from qcompiler.profiles import Rule, TargetProfile

from .qdq import DEQUANTIZE, FOLDED, QUANTIZE, Affine, QdqModel, attribute, label

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
TOLERANCE = 1e-5
"""Relative; a bias's scale is a product that tools round to float32 once or twice."""
WINDOWS = frozenset({"Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"})


@dataclass(frozen=True)
class Violation:
    """One rule that one node breaks, and what to do."""

    rule: str
    node: str
    operator: str
    message: str
    remedy: str


@dataclass(frozen=True)
class Fallback:
    """An operator that would run in float."""

    node: str
    operator: str
    reason: str


@dataclass(frozen=True)
class Findings:
    """What was found in a model of so many `operators`."""

    profile: str
    operators: int
    violations: tuple[Violation, ...]
    fallbacks: tuple[Fallback, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def lint(model: ModelProto, profile: TargetProfile) -> Findings:
    """All that `profile` has to say of a model, in the order of its nodes."""
    graph = QdqModel(model, frozenset(op for op, rule in profile.operators.items() if rule.carries))
    check = _Check(graph, profile)
    nodes = list(graph.operators())
    found: dict[tuple[str, str], Violation] = {}
    for v in (*check.model(), *(v for n in nodes for v in check.operator(n))):
        found.setdefault((v.rule, v.message), v)
    reasons = ((n, check.falls_back(n)) for n in nodes)
    fallbacks = tuple(Fallback(label(n), n.op_type, reason) for n, reason in reasons if reason is not None)
    return Findings(profile.name, len(nodes), tuple(found.values()), fallbacks)


@dataclass(frozen=True)
class _Check:
    graph: QdqModel
    profile: TargetProfile

    # --- the model as a whole ---

    def model(self) -> Iterator[Violation]:
        """Opset, shapes, layout, pairs."""
        graph, p = self.graph, self.profile
        if graph.opset > p.opset:
            yield self._of_model("opset", f"opset {graph.opset}; {p.name} reads up to {p.opset}", f"export to opset {p.opset} or older")
        initial = {t.name for t in graph.model.graph.initializer}
        for info in (i for i in graph.model.graph.input if i.name not in initial):
            shape = graph.types.get(info.name, (0, None))[1]
            if p.static_shapes and (shape is None or None in shape):
                yield self._of_model("dynamic-shape", f"input '{info.name}' has free dimensions", "fix its shape before exporting")
            yield from self._layout(info.name)
        for node in graph.nodes:
            yield from self._pair(node)

    def _of_model(self, rule: str, message: str, remedy: str) -> Violation:
        return Violation(rule, self.graph.model.graph.name or "model", "", message, remedy)

    def _layout(self, name: str) -> Iterator[Violation]:
        turned = [n for n in self.graph.readers.get(name, []) if n.op_type == "Transpose" and list(attribute(n, "perm", [])) == [0, 3, 1, 2]]
        if self.profile.layout == "nchw" and turned:
            yield _violation("layout", turned[0], f"input '{name}' is channels-last and transposed", "export with channels-first inputs")

    def _pair(self, node: NodeProto) -> Iterator[Violation]:
        """A DequantizeLinear reads with the scale that its QuantizeLinear wrote with."""
        made = self.graph.producer.get(node.input[0]) if node.op_type == DEQUANTIZE else None
        if made is None or made.op_type != QUANTIZE:
            return
        a, b = self.graph.parameters(made), self.graph.parameters(node)
        if a is not None and b is not None and not a.same(b):
            yield _violation(
                "pair", node, f"'{node.input[0]}' is read with another scale or zero point than it was written with", "give both nodes the same"
            )

    # --- one operator ---

    def operator(self, node: NodeProto) -> Iterator[Violation]:
        """What is wrong around one operator."""
        rule = self.profile.rule(node.op_type) or Rule()
        operands = [(i, a) for i in self.graph.variable(node) if (a := self.graph.affine(i)) is not None]
        results = [a for q in self.graph.result(node)[0] if (a := self.graph.parameters(q)) is not None]
        for _, a in operands:
            yield from self._activation(node, rule, a, a.tensor)
        for a in results:
            yield from self._activation(node, rule, a, a.tensor)
        if node.op_type in WEIGHTED:
            yield from self._weights(node, rule, operands)
        if rule.same and not self.graph.is_fused(node):
            yield from _same(node, [a for _, a in operands], results)
        if rule.output is not None:
            yield from _output(node, rule.output, results)
        if node.op_type in WINDOWS:
            yield from self._window(node, rule)

    def _activation(self, node: NodeProto, rule: Rule, a: Affine, name: str) -> Iterator[Violation]:
        p = self.profile
        types = rule.types or p.activations.types
        if a.dtype not in types:
            yield _violation("activation-type", node, f"'{name}' is {a.dtype.value}; expected {_listed(types)}", "quantize it to one of these types")
        if (a.axis is not None and not p.activations.per_channel) or a.blocks:
            yield _violation("activation-axis", node, f"'{name}' has {a.scale.size} scales; expected one", "quantize activations per tensor")
        if p.is_symmetric(node.op_type, a.dtype) and not _is_symmetric(a):
            expected = f"expected {' or '.join(map(str, sorted(_centres(a.dtype))))}"
            yield _violation("activation-zero-point", node, f"'{name}' has the zero point {a.zero[0]}; {expected}", "calibrate symmetrically")
        if p.activations.power_of_two and not is_power_of_two(a.scale).all():
            yield _violation(
                "activation-scale", node, f"'{name}' has the scale {a.scale[0]:.6g}; expected a power of two", "round scales up to powers of two"
            )

    # --- weights and biases ---

    def _weights(self, node: NodeProto, rule: Rule, operands: list[tuple[str, Affine]]) -> Iterator[Violation]:
        index = 1 if node.input[1] in self.graph.static else 0
        w = self.graph.affine(node.input[index]) if node.input[index] in self.graph.static else None
        if w is None:
            return
        yield from self._weight_types(node, rule, w)
        yield from self._weight_scales(node, rule, w, index)
        if len(node.input) > 2 and node.input[2] and operands:
            yield from self._bias(node, node.input[2], operands[0][1], w)

    def _weight_types(self, node: NodeProto, rule: Rule, w: Affine) -> Iterator[Violation]:
        p = self.profile.weights
        types = rule.weights or p.types
        if w.dtype not in types:
            yield _violation(
                "weight-type", node, f"weights '{w.tensor}' are {w.dtype.value}; expected {_listed(types)}", "quantize them to one of these types"
            )
        if p.symmetric and not _is_symmetric(w):
            zero = int(w.zero[np.argmax(np.abs(w.zero))])
            yield _violation("weight-zero-point", node, f"weights '{w.tensor}' have the zero point {zero}", "quantize weights symmetrically")
        if p.narrow and w.data is not None and w.dtype is DType.i8 and w.data.size and w.data.min() == -128:
            yield _violation("weight-range", node, f"weights '{w.tensor}' hold -128; expected -127 to 127", "use the narrow range")

    def _weight_scales(self, node: NodeProto, rule: Rule, w: Affine, index: int) -> Iterator[Violation]:
        p = self.profile.weights
        allowed = p.per_channel if rule.per_channel is None else rule.per_channel
        if w.blocks:
            yield _violation(
                "weight-blocks", node, f"weights '{w.tensor}' are quantized in blocks of {w.blocks}", "quantize per channel or per tensor"
            )
        elif w.axis is not None and not allowed:
            yield _violation(
                "weight-per-channel", node, f"weights '{w.tensor}' have {w.scale.size} scales; expected one", "quantize weights per tensor"
            )
        elif w.axis is not None and w.data is not None and w.axis % w.data.ndim != (expected := _channel_axis(node, w.data.ndim, index)):
            remedy = "quantize along the output channels"
            yield _violation("weight-axis", node, f"weights '{w.tensor}' have scales along axis {w.axis}; expected {expected}", remedy)
        if p.power_of_two and not is_power_of_two(w.scale).all():
            worst = w.scale[np.flatnonzero(~is_power_of_two(w.scale))[0]]
            yield _violation("weight-scale", node, f"weights '{w.tensor}' have the scale {worst:.6g}; expected powers of two", "round scales up")

    def _bias(self, node: NodeProto, name: str, x: Affine, w: Affine) -> Iterator[Violation]:
        p, b = self.profile.bias, self.graph.affine(name)
        if b is None:
            if not p.float:
                yield _violation("bias-type", node, f"bias '{name}' is float; expected {_listed(p.types)}", "quantize it with the scale S_x S_w")
            return
        if b.dtype not in p.types:
            yield _violation(
                "bias-type", node, f"bias '{b.tensor}' is {b.dtype.value}; expected {_listed(p.types)}", "quantize it with the scale S_x S_w"
            )
        if b.zero.any():
            yield _violation("bias-zero-point", node, f"bias '{b.tensor}' has a zero point other than 0", "quantize it symmetrically")
        product = x.scale[0] * w.scale
        if p.product and not _alike(b.scale, product):
            message = f"bias '{b.tensor}' has the scale {b.scale[0]:.6g}; expected {product[0]:.6g}, that of the input times that of the weights"
            yield _violation("bias-scale", node, message, "quantize it with the scale S_x S_w")

    # --- windows ---

    def _window(self, node: NodeProto, rule: Rule) -> Iterator[Violation]:
        kernel, strides = self._kernel(node), [int(s) for s in attribute(node, "strides", [1])]
        dilated = [(k - 1) * int(d) + 1 for k, d in zip(kernel, attribute(node, "dilations", [1] * len(kernel)))]
        if rule.kernel and dilated and not _within(rule.kernel, dilated):
            remedy = "use smaller kernels"
            yield _violation("kernel", node, f"the kernel is {_sizes(dilated)}; expected sizes from {rule.kernel[0]} to {rule.kernel[1]}", remedy)
        if rule.area and np.prod(dilated) > rule.area:
            yield _violation("kernel", node, f"the kernel is {_sizes(dilated)}; expected at most {rule.area} elements", "use smaller kernels")
        if rule.stride and not _within(rule.stride, strides):
            yield _violation(
                "stride", node, f"the strides are {_sizes(strides)}; expected {rule.stride[0]} to {rule.stride[1]}", "use smaller strides"
            )

    def _kernel(self, node: NodeProto) -> list[int]:
        given = attribute(node, "kernel_shape")
        if given is None and len(node.input) > 1:
            w = self.graph.affine(node.input[1])
            given = w.data.shape[2:] if w is not None and w.data is not None else ()
        return [int(k) for k in given or ()]

    # --- float ---

    def falls_back(self, node: NodeProto) -> str | None:
        """Why an operator would run in float; None where it runs on integers."""
        fused = self.graph.is_fused(node)
        if self.profile.rule(node.op_type) is None and not (fused and node.op_type in FOLDED):
            return f"{self.profile.name} has no quantized {node.op_type}"
        if not fused:
            for name in self.graph.variable(node):
                if self.graph.is_float(name) and self.graph.affine(name) is None:
                    return f"its operand '{name}' is not quantized"
        if node.op_type in WEIGHTED and (w := self._float_weights(node)) is not None:
            return f"its weights '{w}' are not quantized"
        if (rule := self.profile.rule(node.op_type)) is not None and rule.carries:
            return None
        loose = [t for t in self.graph.result(node)[1] if self.graph.is_float(t)]
        if self.profile.quantized_outputs and loose:
            return f"its result '{loose[0]}' is not quantized"
        return None

    def _float_weights(self, node: NodeProto) -> str | None:
        return next((i for i in node.input[:2] if i in self.graph.static and self.graph.affine(i) is None), None)


def _same(node: NodeProto, operands: list[Affine], results: list[Affine]) -> Iterator[Violation]:
    known = [*operands, *results]
    other = next((a for a in known[1:] if not a.same(known[0])), None)
    if other is not None and operands:
        message = f"'{known[0].tensor}' and '{other.tensor}' have different scales or zero points ({known[0].scale[0]:.6g}, {other.scale[0]:.6g})"
        yield _violation("scales-differ", node, message, "give operands and result of this operator one scale and zero point")


def _output(node: NodeProto, expected: tuple[float, int], results: list[Affine]) -> Iterator[Violation]:
    for a in results:
        zero = int(a.zero[0]) - (128 if a.dtype is DType.u8 else 0)
        if a.dtype.numpy.itemsize == 1 and (float(a.scale[0]), zero) != expected:
            message = f"'{a.tensor}' has scale {a.scale[0]:.6g} and zero point {a.zero[0]}; expected {expected[0]:.6g} and {expected[1]} (as int8)"
            yield _violation("output-scale", node, message, "quantize this operator's result so")


def _violation(rule: str, node: NodeProto, message: str, remedy: str) -> Violation:
    return Violation(rule, label(node), node.op_type, message, remedy)


def _alike(scale: NDArray[np.float64], product: NDArray[np.float64]) -> bool:
    """Whether scales are equal but for rounding, one of them standing for all where it is one."""
    return scale.size in (1, product.size) and bool(np.allclose(np.broadcast_to(scale, product.shape), product, rtol=TOLERANCE, atol=0))


def _centres(dtype: DType) -> set[int]:
    """Zero points that count as symmetric."""
    return {0, 1 << (8 * dtype.numpy.itemsize - 1)} if dtype.value.startswith("u") else {0}


def _is_symmetric(a: Affine) -> bool:
    return bool(np.isin(a.zero, sorted(_centres(a.dtype))).all())


def _channel_axis(node: NodeProto, rank: int, index: int) -> int:
    """The axis of the output channels in the weights."""
    match node.op_type:
        case "Conv":
            return 0
        case "ConvTranspose":
            return 1
        case "Gemm":
            return 0 if attribute(node, "transB", 0) else 1
    return rank - 1 if index == 1 else rank - 2


def _within(bounds: tuple[int, int], sizes: list[int]) -> bool:
    return all(bounds[0] <= s <= bounds[1] for s in sizes)


def _sizes(sizes: list[int]) -> str:
    return " x ".join(map(str, sizes))


def _listed(types: tuple[DType, ...]) -> str:
    return " or ".join(t.value for t in types)
