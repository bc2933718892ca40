"""All importers in one table: a new operator is a function in the file of its family, a new family one line here."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from types import MappingProxyType

from qcompiler.frontend import (
    attention,
    constants,
    contrib,
    contrib_attention,
    convolution,
    einsum,
    linear,
    movement,
    normalization,
    pointwise,
    pooling,
    quantization,
    reductions,
    resizing,
    static,
)
from qcompiler.frontend.node import Importer

_STANDARD = (attention, constants, convolution, einsum, linear, movement, normalization, pointwise, pooling, quantization, reductions, resizing)
_FAMILIES = (*_STANDARD, static, contrib, contrib_attention)

IMPORTERS: Mapping[str, Importer] = MappingProxyType(dict(ChainMap(*(f.IMPORTERS for f in _FAMILIES))))
"""The importer of each supported operator; names of other domains have the domain before them."""

READS_QUANTIZED = frozenset(
    {"DequantizeLinear", "Clip", "Identity", "Dropout", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "Tile", "Expand"}
    | {"Shape", "Size", "MaxPool", "DepthToSpace", "SpaceToDepth"}
)
"""Operators that only move, bound or order elements: they may stand between QuantizeLinear and DequantizeLinear."""
