"""Conv and ConvTranspose, 1-D and 2-D, with all their ways to spell padding."""

from __future__ import annotations

from collections.abc import Sequence

from qcompiler.frontend.node import Importers, Node, Unsupported
from qcompiler.ir import ops
from qcompiler.ir.graph import Value

IMPORTERS = Importers()

Pairs = tuple[tuple[int, int], ...]


@IMPORTERS.register("Conv")
def conv(node: Node, x: Value, w: Value, bias: Value | None = None) -> Value:
    """x [N,C,(H,)W], w [O,C/groups,(kh,)kw], bias [O]."""
    rank = spatial_rank(node, x)
    check_kernel(node, w, rank)
    x2, w2 = as_2d(node, x), weights_2d(node, w)
    strides, dilations = spatial(node, "strides", rank), spatial(node, "dilations", rank)
    pads = resolve_pads(node, x2.shape[1:3], w2.shape[1:3], strides, dilations)
    op = ops.Conv(strides, pads, dilations, node.integer("group"))
    return from_2d(node, node.emit(op, x2, w2, *_bias(bias)), rank)


@IMPORTERS.register("ConvTranspose")
def conv_transpose(node: Node, x: Value, w: Value, bias: Value | None = None) -> Value:
    """x [N,C,(H,)W], w [C,O/groups,(kh,)kw], bias [O]."""
    rank = spatial_rank(node, x)
    check_kernel(node, w, rank)
    x2, w2 = as_2d(node, x), weights_2d(node, w)
    strides, dilations = spatial(node, "strides", rank), spatial(node, "dilations", rank)
    extra = spatial(node, "output_padding", rank, 0)
    full = [(x2.shape[1 + i] - 1) * strides[i] + dilations[i] * (w2.shape[1 + i] - 1) + 1 + extra[i] for i in range(2)]
    pads, more = _transposed_pads(node, x2.shape[1:3], full, strides, rank)
    op = ops.ConvTranspose(strides, pads, dilations, node.integer("group"), (extra[0] + more[0], extra[1] + more[1]))
    return from_2d(node, node.emit(op, x2, w2, *_bias(bias)), rank)


def _bias(bias: Value | None) -> tuple[Value, ...]:
    return () if bias is None else (bias,)


# --- one and two dimensions ---


def spatial_rank(node: Node, x: Value) -> int:
    """1 or 2; three-dimensional operators are not supported."""
    if x.type.rank not in (3, 4):
        raise Unsupported(f"has {x.type.rank - 2} spatial dimensions; 1 and 2 are supported")
    return x.type.rank - 2


def as_2d(node: Node, x: Value) -> Value:
    """[N,C,H,W] or [N,C,W] as [N,H,W,C] with H = 1."""
    x = node.channels_last(x)
    return x if x.type.rank == 4 else node.emit(ops.Reshape((x.shape[0], 1, *x.shape[1:])), x)


def from_2d(node: Node, y: Value, rank: int) -> Value:
    """[N,H,W,C] back to the model's [N,C,H,W], or to [N,C,W] where `rank` is 1."""
    return node.channels_first(y if rank == 2 else node.emit(ops.Reshape((y.shape[0], *y.shape[2:])), y))


def weights_2d(node: Node, w: Value) -> Value:
    """[A,B,kh,kw] or [A,B,kw] as [A,kh,kw,B]."""
    return as_2d(node, w)


def spatial(node: Node, name: str, rank: int, default: int = 1) -> tuple[int, int]:
    """A (height, width) attribute; one-dimensional operators get `default` for the height."""
    given = node.integers(name) or (default,) * rank
    if len(given) != rank or any(i < default for i in given):
        raise ValueError(f"{name} {given} must be {rank} numbers of at least {default}")
    return (given[0], given[1]) if rank == 2 else (default, given[0])


def check_kernel(node: Node, w: Value, rank: int) -> None:
    """ValueError where weights and the attribute kernel_shape disagree."""
    stated = node.integers("kernel_shape")
    if w.type.rank != rank + 2 or (stated is not None and stated != w.shape[2:]):
        raise ValueError(f"weights {w.type} do not fit {rank} spatial dimensions and kernel_shape {stated}")
    if node.integer("group") < 1 or w.shape[0] % node.integer("group"):
        raise ValueError(f"weights {w.type} do not divide into {node.integer('group')} groups")


# --- padding ---


def resolve_pads(node: Node, size: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Pairs:
    """((top, bottom), (left, right)) from `pads` or `auto_pad`, for a convolution or pooling."""
    mode = node.choice("auto_pad", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")
    if mode == "NOTSET":
        return explicit_pads(node)
    if mode == "VALID":
        return ((0, 0), (0, 0))
    totals = [(-(-n // s) - 1) * s + d * (k - 1) + 1 - n for n, k, s, d in zip(size, kernel, strides, dilations)]
    return tuple(_halved(max(t, 0), mode == "SAME_UPPER") for t in totals)


def explicit_pads(node: Node) -> Pairs:
    """((top, bottom), (left, right)) from the attribute `pads`."""
    given = node.integers("pads") or (0, 0, 0, 0)
    if len(given) not in (2, 4) or any(p < 0 for p in given):
        raise ValueError(f"pads {given} must be 2 or 4 numbers, none negative")
    half = len(given) // 2
    pairs = tuple((given[i], given[i + half]) for i in range(half))
    return pairs if half == 2 else ((0, 0), *pairs)


def _halved(total: int, upper: bool) -> tuple[int, int]:
    """The odd element goes to the end for SAME_UPPER, else to the beginning."""
    less, more = total // 2, total - total // 2
    return (less, more) if upper else (more, less)


def _transposed_pads(node: Node, size: Sequence[int], full: Sequence[int], strides: Sequence[int], rank: int) -> tuple[Pairs, tuple[int, int]]:
    """Pads, and elements added at the end where a given output_shape is larger than the full result."""
    mode = node.choice("auto_pad", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")
    wanted = node.integers("output_shape")
    if wanted is None and mode == "NOTSET":
        return explicit_pads(node), (0, 0)
    if wanted is None and mode == "VALID":
        return ((0, 0), (0, 0)), (0, 0)
    target = [n * s for n, s in zip(size, strides)] if wanted is None else [1, *wanted][-2:] if rank == 1 else list(wanted)[-2:]
    totals = [f - t for f, t in zip(full, target)]
    pads = tuple(_halved(max(t, 0), mode == "SAME_UPPER") for t in totals)
    return pads, (max(-totals[0], 0), max(-totals[1], 0))
