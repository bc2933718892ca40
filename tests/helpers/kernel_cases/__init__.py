"""All cases of kernels, a family of operators a file."""

from . import elementwise, movement, products, reductions, sequence
from .registry import CASES, Case

__all__ = ["CASES", "Case", "elementwise", "movement", "products", "reductions", "sequence"]
