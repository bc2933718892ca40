"""What the kernel of `IntAttention` needs to know: sizes, strides, which of its parts are there, and its working memory.

Keys come in **blocks** of as many as a register has bytes (four registers of 32-bit lanes), the last one perhaps with fewer registers;
values in blocks of channels likewise. Working memory holds, one after the other:

    keys       per block [groups of D][registers], and for 8-bit forms a 32-bit constant per key
    values     per block of channels [groups of M][registers]
    rows       keys or values of one block, widened or turned unsigned, before they are packed

and, a slot of its own for each piece that threads compute,

    queries    `tile` rows as the form wants them, and 32 bytes of numbers per row
    logits     `tile` rows of 16 bits, over which the exponentials are written
    masks      one row, or `tile` of them

Where threads divide heads, each piece packs its own keys and values, in a slot of the upper parts too. Where there are too few heads for that
to keep all threads busy, keys and values of all heads are packed first, and tiles of rows are divided (`by_rows`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from qcompiler.backends.llvm.split import MOST_PIECES, most_balanced
from qcompiler.backends.llvm.target import Target
from qcompiler.ir.integer import IntAttention
from qcompiler.numerics.attention import MASKED
from qcompiler.numerics.requantize import output_offset
from qcompiler.passes.layouts import Space
from qcompiler.passes.partition import Step

from .activation_products import Form, form_of, prepared_bytes, word_order
from .rows import Operand, Strides

MOST_ROWS = {"vpdpbusd": 3, "maddubs": 2, "sdot": 4, "smull": 4}
"""Rows of queries done at once, by form; a row takes up to four accumulators. Twice as many in 32 registers of x86."""
ROW_NUMBERS = 32
"""Bytes of numbers per row: its constant of the logits, then what its results are requantized with."""
ADDEND, RIGHT, FACTOR, LEFT = 4, 8, 12, 16
"""Positions among them."""
LOGIT_RIGHT, LOGIT_FACTOR, LOGIT_LEFT, KEY_FACTOR, KEY_ADDEND, ROW_FACTOR, VALUE_FACTOR, VALUE_SHIFT, VALUE_ZERO, OFFSET, QUERY_ZERO, KEY_ZERO = (
    4 * i for i in range(12)
)
"""Positions among the numbers of a launch, of 32 bits each."""


@dataclass(frozen=True)
class Sizes:
    """Of the operands: q [b,n,h,d], k [b,m,g,d], v [b,m,g,e]."""

    b: int
    n: int
    m: int
    h: int
    g: int
    d: int
    e: int


@dataclass(frozen=True)
class AttentionConfig:
    """Strides of q, k, v and y along batch, position and head; those of bias and mask along batch, head and row (mask: and key)."""

    sizes: Sizes
    target: Target
    strides: tuple[Strides, Strides, Strides, Strides]
    spaces: tuple[Space, Space, Space, Space]
    causal: bool
    lo: int
    hi: int
    left_logits: bool
    left_values: bool
    bias: Strides | None = None
    bias_hides: bool = False
    mask: Strides | None = None
    mask_space: Space = Space.arena

    @cached_property
    def form(self) -> Form:
        """How activations are multiplied here."""
        return form_of(self.target)

    @property
    def block(self) -> int:
        """Keys of a block."""
        return self.target.vector_bytes

    @cached_property
    def blocks(self) -> int:
        """Blocks of keys, the last one included."""
        return -(-self.sizes.m // self.block)

    @property
    def last_keys(self) -> int:
        """Keys in the last block."""
        return self.sizes.m - (self.blocks - 1) * self.block

    @property
    def last_count(self) -> int:
        """Registers of the last block. All four where blocks are counted at run time, and where masks are read in order."""
        return 4 if self.causal or self.mask is not None else -(-self.last_keys // self.target.lanes)

    def count(self, block: int) -> int:
        """Registers of a block."""
        return self.last_count if block == self.blocks - 1 else 4

    @property
    def whole_blocks(self) -> int:
        """Blocks that need no care for their end."""
        return self.blocks - (self.last_keys < self.block)

    @property
    def tile(self) -> int:
        """Rows done at once: as few tiles as the registers allow, and then as few rows."""
        most = min(MOST_ROWS[self.target.dot] * (2 if self.target.vector_bits == 512 else 1), self.sizes.n)
        return -(-self.sizes.n // -(-self.sizes.n // most))

    @property
    def hides(self) -> bool:
        """Whether logits of any block may be hidden."""
        return self.causal or self.mask is not None or self.bias_hides

    @property
    def by_words(self) -> bool:
        """Whether exponentials are looked up in registers of 32 words, which only AVX-512 has."""
        return self.target.vector_bits == 512

    @property
    def channels(self) -> list[tuple[int, int]]:
        """(first channel, registers) of the blocks of values' channels."""
        size = self.target.vector_bytes
        found = [(start, 4) for start in range(0, self.sizes.e - size + 1, size)]
        rest = -(-(self.sizes.e % size) // self.target.lanes)
        return [*found, (self.sizes.e // size * size, 4 if rest == 3 else rest)] if rest else found

    # --- working memory ----------------------------------------------------------------------------------------------

    @property
    def key_groups(self) -> int:
        """Groups of D."""
        return -(-self.sizes.d // self.form.group)

    @property
    def stored_key_groups(self) -> int:
        """With those that are packed along: keys are turned by four groups at once."""
        return -(-self.key_groups // 4) * 4

    @property
    def key_block_bytes(self) -> int:
        """A block of packed keys, and its constants."""
        return (self.stored_key_groups + 1) * 4 * self.target.vector_bytes

    @property
    def value_groups(self) -> int:
        """Groups of keys in a block."""
        return self.block // self.form.group

    @property
    def query_bytes(self) -> int:
        """Of one prepared query or key; whole groups of four chunks."""
        return max(prepared_bytes(self.target, self.form, self.sizes.d), 16 * (self.stored_key_groups // 4))

    @property
    def value_bytes(self) -> int:
        """Of one prepared value: all channels that blocks hold, by sixteens."""
        start, count = self.channels[-1]
        held = max(start + count * self.target.lanes, start + 16)
        return max(prepared_bytes(self.target, self.form, self.sizes.e), held * self.form.bits // 8)

    @property
    def logits_bytes(self) -> int:
        """Of one row."""
        return self.blocks * self.block * 2

    @property
    def mask_rows(self) -> int:
        """Rows of masks that are prepared together."""
        if self.mask is None:
            return 0
        return self.tile if self.mask[2] else 1

    @property
    def units(self) -> int:
        """Rounds of the loop that threads divide."""
        return max(self.sizes.b, self.sizes.g)

    @property
    def tiles(self) -> int:
        """Tiles of rows of all heads."""
        return self.sizes.b * self.sizes.h * -(-self.sizes.n // self.tile)

    @cached_property
    def by_rows(self) -> bool:
        """Whether threads divide tiles of rows."""
        if self.sizes.b * self.sizes.g > MOST_PIECES:
            return False
        return most_balanced({"heads": [(self.units, 1.0)], "rows": [(self.tiles, 1.0)]}) == "rows"

    @property
    def packed_slots(self) -> int:
        """Slots for packed keys and values: of every head, or of as many as there may be pieces."""
        return self.sizes.b * self.sizes.g if self.by_rows else self.slots

    @property
    def slots(self) -> int:
        """Slots for the rest: as many as there may be pieces."""
        return min(self.tiles if self.by_rows else self.units, MOST_PIECES)

    @cached_property
    def packed(self) -> dict[str, int]:
        """Where the parts of a slot for packed keys and values begin; `end` is its size."""
        return starts(
            keys=self.blocks * self.key_block_bytes,
            values=sum(count for _, count in self.channels) * self.target.vector_bytes * self.value_groups * self.blocks,
            rows=self.block * max(self.query_bytes, self.value_bytes),
        )

    @cached_property
    def areas(self) -> dict[str, int]:
        """The same of a slot for the rest."""
        return starts(
            queries=self.tile * self.query_bytes,
            numbers=self.tile * ROW_NUMBERS,
            logits=self.tile * self.logits_bytes,
            masks=self.mask_rows * self.blocks * self.block,
        )

    @property
    def scratch_bytes(self) -> int:
        """Of all slots."""
        return self.packed_slots * self.packed["end"] + self.slots * self.areas["end"]


def starts(**parts: int) -> dict[str, int]:
    """Parts of so many bytes one after the other, in cache lines of their own; and their `end`."""
    sizes = [-(-n // 64) * 64 for n in parts.values()]
    return dict(zip((*parts, "end"), (sum(sizes[:i]) for i in range(len(sizes) + 1))))


def attention_scratch(step: Step, target: Target) -> int:
    """Bytes of working memory of an `IntAttention`."""
    return config_of(step, target, ((0,) * 4,) * 4, (Space.arena,) * 4).scratch_bytes


def config_of(
    step: Step, target: Target, strides: tuple[Strides, Strides, Strides, Strides], spaces: tuple[Space, Space, Space, Space]
) -> AttentionConfig:
    """Without bias's and mask's whereabouts, strides as of all four axes; sizes of working memory do not depend on them."""
    v = step.producer
    op, (q, k, values) = v.op, v.inputs[:3]
    assert isinstance(op, IntAttention)
    assert v.type.quant is not None
    (b, n, h, d), (_, m, g, _) = q.shape, k.shape
    quant = v.type.quant
    mask = v.inputs[-1].shape if op.mask else None
    return AttentionConfig(
        Sizes(b, n, m, h, g, d, values.shape[3]),
        target,
        strides,
        spaces,
        op.causal,
        quant.qmin,
        quant.qmax,
        op.logits[0] < 0,
        op.values[0] < -7,
        mask=None if mask is None else (0, 0, int(len(mask) > 1 and mask[-2] > 1), 0),
    )


def bias_words(data: NDArray[np.generic], c: AttentionConfig) -> NDArray[np.int16]:
    """[b or 1, h or 1, n or 1, blocks, 2 registers]: the bias in the order of logits, `MASKED` where there is no key."""
    wide = np.asarray(data, np.int16).reshape((1,) * (4 - data.ndim) + data.shape)
    wide = np.broadcast_to(wide, (*wide.shape[:3], c.sizes.m))
    pieces = list[NDArray[np.int16]]()
    for block in range(c.blocks):
        order = word_order(c.target, c.count(block))
        at = np.where(order < 0, c.sizes.m, block * c.block + order)
        padded = np.concatenate([wide, np.full((*wide.shape[:3], 1), MASKED, np.int16)], 3)
        pieces.append(padded[..., np.minimum(at, c.sizes.m)])
    return np.ascontiguousarray(np.stack(pieces, 3).reshape(*wide.shape[:3], -1))


def launch_numbers(op: IntAttention, q: Operand, k: Operand, v: Operand, y: Operand, c: AttentionConfig) -> NDArray[np.int64]:
    """The numbers of a launch, see the positions above.

    sum (q - z_q)(k - z_k) = sum (q + o) k - (z_q + o) sum k - z_k sum (q + o) + D z_k (z_q + o)      o the form's offset of queries
    """
    (shift, factor), (base_shift, base) = op.logits, op.values
    half = 1 << (shift - 1) if shift > 0 else 0
    packed = c.form.bits == 8
    zero = q.zero_point + c.form.query_offset
    return np.array(
        [
            max(shift, 0),
            factor,
            1 << max(-shift, 0),
            -zero if packed else 0,
            half + (c.sizes.d * k.zero_point * zero if packed else 0),
            -k.zero_point if packed else 0,
            base,
            base_shift + 46,
            -(v.zero_point + c.form.value_offset),
            output_offset(y.zero_point),
            q.zero_point,
            k.zero_point,
        ],
        np.int64,
    )
