"""Precisions by name: w4a8 is 4 bits for weights and 8 for what they multiply."""

from __future__ import annotations

import re

from .errors import UsageError

WEIGHT_BITS, ACTIVATION_BITS = (2, 8), (4, 8)
"""Least and most bits of weights, and of activations."""


def bits_of(precision: str) -> tuple[int, int]:
    """Bits of weights and of activations. UsageError where the name says none, or too few or too many."""
    found = re.fullmatch(r"w(\d)a(\d)", precision)
    bits = (int(found[1]), int(found[2])) if found else (0, 0)
    if any(not low <= b <= high for b, (low, high) in zip(bits, (WEIGHT_BITS, ACTIVATION_BITS))):
        raise UsageError(
            f"expected a precision such as w8a8, w7a8, w6a6, w4a8 or w4a4, found '{precision}'; "
            "name wNaM with N from 2 to 8 bits of weights and M from 4 to 8 of activations"
        )
    return bits
