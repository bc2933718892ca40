"""Dot products of four: acc[lane] += sum over i < 4 of x[lane, i] * w[lane, i], in the form that each instruction set has.

All are exact for x in [-128, 127] and w in [-127, 127]:

- **vpdpbusd**: one instruction, u8 x s8. Activations are stored offset by 128, which the bias takes back: -128 * sum(w), modulo 2^32.
- **maddubs**: |x| as u8 times sign(w, x) as s8 in pairs of 16 bits, at most 2 * 128 * 127 < 2^15, then vpmaddwd by ones. Where the
  weights allow it (`chains`), x + 128 as u8 times w as it is; the bias takes 128 * sum(w) back.
- **sdot**: one instruction, s8 x s8.
- **smmla**: eight products for each of two pixels and two channels in one instruction, s8 x s8: sums [pixel, channel] of 2 x 2.
- **lengthwise**: 16 consecutive activations times 16 weights of one channel, smull and smlal2, then sadalp: nothing is broadcast, and each
  result is a register of four partial sums until the end.
- **smull**: the first and second pair of a group multiplied to 16 bits and added, at most 2 * 128 * 127 < 2^15 again, then
  pairwise added into the accumulator: smull, smlal, sadalp. Weights are packed with pairs outermost: (pair, lane, 2).

Activations of 16 bits are multiplied in pairs of 16-bit words, by weights whose bytes are widened when they are loaded:

- **vpdpwssd**: one instruction.
- **maddwd**: vpmaddwd, whose only sum beyond 32 bits, -2^15 * -2^15 * 2, no weight in [-127, 127] gives, then an addition.
- **smlal**: smlal and smlal2, a lane of x times four channels each. Weights are packed with elements of K outermost: (2, lane).

maddubs, lengthwise and smull have 16-bit sums between: where the weights prove that they stay in range, several groups are added up in
16 bits before they are widened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import instrs
from .dsl import Kernel, Ptr, Val
from .target import Target

GROUP = 4
"""Products per accumulator lane and step."""
XOperand = tuple[Any, ...]
"""What `Dot.dot` wants of x, prepared once for all registers of weights."""


@dataclass(frozen=True)
class Dot:
    """One form; the numbers are what the choice of tiles needs to know."""

    steps: float = 1
    """Instructions per dot."""
    prepare: float = 0
    """Instructions per x operand besides its load."""
    multiplies: float = 1
    """Of them, those that only the multipliers do."""
    scratch: int = 2
    """Registers in use besides accumulators and weights."""
    wide: int = 1
    """Groups of x that one load serves."""
    offset: int = 0
    """What `dot` adds to x; the bias takes it back."""
    group: int = GROUP
    """Bytes of consecutive activations of one step."""
    itemsize: int = 1
    """Bytes of an activation."""
    pixels: int = 1
    """Pixels of an x operand."""
    weights: int = 1
    """Registers of weights that are live for each register of results."""
    held: int = 0
    """Registers of an x operand that are live beside others'."""
    finishing: float = 0
    """Instructions of `finish` for each register of results."""
    fenced: bool = False
    """Whether accumulators take so many registers that loads must not be moved up, see `Kernel.fence`."""
    widening: float = 0
    """Instructions per register of weights besides its load."""
    late: bool = False
    """Whether accumulators begin with zero; what they should begin with is added after `finish`."""

    @property
    def spread(self) -> int:
        """Registers of weights, and of accumulators of an x operand, for each register of results."""
        return self.group // GROUP

    @property
    def elements(self) -> int:
        """Consecutive elements of K of one step."""
        return self.group // self.itemsize

    def load(self, k: Kernel, p: Ptr, count: int) -> Val:
        """`count` registers of weights."""
        return k.load(p, 8, count)

    def start(self, k: Kernel, first: Val) -> Val:
        """The accumulators of an x operand, all of whose pixels begin with the results `first`."""
        return k.splat(0, 32).repeat(len(first) * self.spread) if self.late else first

    def finish(self, k: Kernel, acc: Val) -> list[Val]:
        """The results of each pixel of an x operand from its accumulators."""
        return [acc]

    def pack(self, w: NDArray[np.int8]) -> NDArray[np.int8]:
        """Weights [..., lanes, elements] in the order of a register: [..., lanes * elements]."""
        return w.reshape(*w.shape[:-2], -1)

    def broadcast(self, k: Kernel, p: Ptr, signed: bool = True) -> XOperand:
        """The four stored activations at `p`, for all lanes."""
        return self.operand(k, k.reinterpret(k.broadcast(p, 32), 8), signed)

    def operand(self, k: Kernel, x: Val, signed: bool = True) -> XOperand:
        """x operand of a register with four activations per lane; not `signed`: those of x + 128, where a form has both."""
        return x.regs

    def consecutive(self, k: Kernel, places: Sequence[Ptr], groups: int) -> list[XOperand]:
        """The x operands of `groups` groups, one after the other, from each of the pixels' `places` on."""
        return [self.broadcast(k, places[0] + self.group * i) for i in range(groups)]

    def interleave(self, k: Kernel, taps: list[Val], signed: bool = True) -> list[XOperand]:
        """Four x operands, for the registers of a block of count 4, from the channels of as many taps as there are elements in a step:
        lane c gets taps[i][c]."""
        pairs = [k.reinterpret(half, 16) for a, b in (taps[:2], taps[2:]) for half in k.zip(a, b)]
        quads = [*k.zip(pairs[0], pairs[2]), *k.zip(pairs[1], pairs[3])]
        return [self.operand(k, k.reinterpret(q, 8), signed) for q in quads]

    def dot(self, k: Kernel, acc: Any, x: XOperand, w: Any) -> Any:
        """acc plus the products."""
        raise NotImplementedError

    def all(self, k: Kernel, acc: Val, x: XOperand, w: Val) -> Val:
        """`dot` for each register of weights."""
        return Val(k, tuple(self.dot(k, a, x, r) for a, r in zip(acc.regs, w.regs, strict=True)), 32)


class Vpdpbusd(Dot):
    """u8 x s8 in one instruction."""

    def dot(self, k: Kernel, acc: Any, x: XOperand, w: Any) -> Any:
        return instrs.VPDPBUSD[k.target.vector_bits](k, acc, x[0], w)


@dataclass(frozen=True)
class Chained(Dot):
    """Forms with 16-bit sums between products and accumulator."""

    cells: tuple[tuple[int, ...], ...] = ()
    """Which of the products of a group share a 16-bit lane."""
    links: int = 8
    """Groups that a chain may have; beyond, widening costs next to nothing, or registers are wanting."""
    unsigned: bool = False
    """Whether x + 128 times w, without a sign, is cheaper."""

    def products(self, k: Kernel, x: XOperand, w: Any) -> list[Any]:
        """16-bit lanes whose sum is that of the products."""
        raise NotImplementedError

    def widened(self, k: Kernel, words: Any) -> Any:
        """Neighbouring 16-bit lanes added to 32 bits."""
        raise NotImplementedError

    def chain(self, k: Kernel, acc: Any, xs: Sequence[XOperand], ws: Sequence[Any]) -> Any:
        """acc plus the products of several groups, whose sums are proven to stay in 16 bits."""
        words = reduce(k.b.add, (p for x, w in zip(xs, ws, strict=True) for p in self.products(k, x, w)))
        return k.b.add(acc, self.widened(k, words))

    def dot(self, k: Kernel, acc: Any, x: XOperand, w: Any) -> Any:
        return self.chain(k, acc, [x], [w])


class Maddubs(Chained):
    """An x operand is (|x|, x) for the signed form, or (x + 128,)."""

    def operand(self, k: Kernel, x: Val, signed: bool = True) -> XOperand:
        if not signed:
            return k.unsigned(x).regs
        (r,) = k.unbias(x).regs
        return k.absolute(r), r

    def products(self, k: Kernel, x: XOperand, w: Any) -> list[Any]:
        bits = k.target.vector_bits
        return [instrs.MADDUBS[bits](k, x[0], instrs.SIGN[bits](k, w, x[1]) if len(x) > 1 else w)]

    def widened(self, k: Kernel, words: Any) -> Any:
        return instrs.MADD[k.target.vector_bits](k, words, instrs.splat(words.type, 1))


class Sdot(Dot):
    """s8 x s8 in one instruction, which takes x for all lanes from one lane of a register."""

    def consecutive(self, k: Kernel, places: Sequence[Ptr], groups: int) -> list[XOperand]:
        found = list[XOperand]()
        for at in range(0, groups, self.wide):
            here = min(self.wide, groups - at)
            x = k.load_lanes(places[0] + GROUP * at, 32, GROUP * here)
            found += [k.reinterpret(k.permute(x, [i] * k.target.lanes), 8).regs for i in range(here)]
        return found

    def dot(self, k: Kernel, acc: Any, x: XOperand, w: Any) -> Any:
        return instrs.SDOT(k, acc, w, x[0])


class Smmla(Dot):
    """An x operand is eight activations of one pixel and eight of the next; registers of weights hold eight of each of two channels."""

    def start(self, k: Kernel, first: Val) -> Val:
        pairs = k.reinterpret(first, 64)
        return k.reinterpret(Val(k, tuple(instrs.pick(k.b, r, [i, i]) for r in pairs.regs for i in (0, 1)), 64), 32)

    def consecutive(self, k: Kernel, places: Sequence[Ptr], groups: int) -> list[XOperand]:
        found = list[XOperand]()
        for at in range(0, groups, self.wide):
            here = min(self.wide, groups - at)
            a, b = (k.load_lanes(p + self.group * at, 64, self.group * here).regs[0] for p in places)
            found += [(k.b.bitcast(instrs.shuffle(k.b, a, b, [i, 2 + i]), k.register_type(8)),) for i in range(here)]
        return found

    def dot(self, k: Kernel, acc: Any, x: XOperand, w: Any) -> Any:
        return instrs.SMMLA(k, acc, x[0], w)

    def finish(self, k: Kernel, acc: Val) -> list[Val]:
        pairs = k.reinterpret(acc, 64).regs
        rows = (tuple(instrs.shuffle(k.b, a, b, [i, 2 + i]) for a, b in zip(pairs[::2], pairs[1::2])) for i in (0, 1))
        return [k.reinterpret(Val(k, row, 64), 32) for row in rows]


class Lengthwise(Chained):
    """Both operands are 16 consecutive elements of K; accumulators are four partial sums of one channel."""

    def broadcast(self, k: Kernel, p: Ptr, signed: bool = True) -> XOperand:
        return k.load(p, 8).regs

    def products(self, k: Kernel, x: XOperand, w: Any) -> list[Any]:
        xs, ws = Val(k, (x[0],), 8), Val(k, (w,), 8)
        return [instrs.SMULL(k, _half(k, xs, h), _half(k, ws, h)) for h in (0, 1)]

    def widened(self, k: Kernel, words: Any) -> Any:
        return instrs.SADDLP(k, words)

    def finish(self, k: Kernel, acc: Val) -> list[Val]:
        pairs = [instrs.ADDP(k, a, b) for a, b in zip(acc.regs[::2], acc.regs[1::2], strict=True)]
        return [Val(k, tuple(instrs.ADDP(k, a, b) for a, b in zip(pairs[::2], pairs[1::2], strict=True)), 32)]


class Smull(Chained):
    """Pairs outermost: x and w operands are (first pairs, second pairs) of all lanes."""

    def pack(self, w: NDArray[np.int8]) -> NDArray[np.int8]:
        lanes = w.shape[-2]
        return w.reshape(*w.shape[:-1], 2, 2).swapaxes(-3, -2).reshape(*w.shape[:-2], lanes * 4)

    def broadcast(self, k: Kernel, p: Ptr, signed: bool = True) -> XOperand:
        x = k.reinterpret(k.lane(p, 32), 16)
        first, second = (k.reinterpret(k.permute(x, [i] * (2 * k.target.lanes)), 8) for i in (0, 1))
        # a whole register, or LLVM would make half of one and move the upper half of every register of weights down
        return _half(k, first, 0), _half(k, k.opaque(second), 1)

    def interleave(self, k: Kernel, taps: list[Val], signed: bool = True) -> list[XOperand]:
        first, second = k.zip(*taps[:2]), k.zip(*taps[2:])
        return [(_half(k, first[i], h), _half(k, second[i], h)) for i in (0, 1) for h in (0, 1)]

    def products(self, k: Kernel, x: XOperand, w: Any) -> list[Any]:
        halves = (_half(k, Val(k, (w,), 8), h) for h in (0, 1))
        return [instrs.SMULL(k, a, b) for a, b in zip(x, halves)]

    def widened(self, k: Kernel, words: Any) -> Any:
        return instrs.SADDLP(k, words)


class Words(Dot):
    """Pairs of 16-bit words: an x operand is two activations in every lane."""

    def load(self, k: Kernel, p: Ptr, count: int) -> Val:
        size, kind = k.target.vector_bytes // 2, k.register_type(16)
        octets = (k.b.load((p + i * size).ir, align=1, typ=instrs.vector_type((size, 8))) for i in range(count))
        return Val(k, tuple(k.b.sext(o, kind) for o in octets), 16)

    def broadcast(self, k: Kernel, p: Ptr, signed: bool = True) -> XOperand:
        return k.reinterpret(k.broadcast(p, 32), 16).regs

    def interleave(self, k: Kernel, taps: list[Val], signed: bool = True) -> list[XOperand]:
        a, b = taps
        return [half.regs for i in (0, 1) for half in k.zip(a[i : i + 1], b[i : i + 1])]


class Vpdpwssd(Words):
    """Two products and the addition in one instruction."""

    def dot(self, k: Kernel, acc: Any, x: XOperand, w: Any) -> Any:
        return instrs.VPDPWSSD[k.target.vector_bits](k, acc, x[0], w)


class Maddwd(Words):
    """Two products and their sum, then the addition."""

    def dot(self, k: Kernel, acc: Any, x: XOperand, w: Any) -> Any:
        return k.b.add(acc, instrs.MADD[k.target.vector_bits](k, x[0], w))


class Smlal(Words):
    """An x operand is the first and the second activation, each for all channels."""

    def pack(self, w: NDArray[np.int8]) -> NDArray[np.int8]:
        return w.swapaxes(-2, -1).reshape(*w.shape[:-2], -1)

    def consecutive(self, k: Kernel, places: Sequence[Ptr], groups: int) -> list[XOperand]:
        found = list[XOperand]()
        for at in range(0, groups, self.wide):
            here = min(self.wide, groups - at)
            x = k.load_lanes(places[0] + GROUP * at, 16, GROUP * here)
            lanes = [k.permute(x, [i] * 8) for i in range(2 * here)]
            found += [(_half(k, a, 0), _half(k, b, 1)) for a, b in zip(lanes[::2], lanes[1::2])]
        return found

    def interleave(self, k: Kernel, taps: list[Val], signed: bool = True) -> list[XOperand]:
        a, b = taps
        return [(_half(k, a[i : i + 1], h), _half(k, b[i : i + 1], h)) for i in (0, 1) for h in (0, 1)]

    def dot(self, k: Kernel, acc: Any, x: XOperand, w: Any) -> Any:
        halves = (_half(k, Val(k, (w,), 16), h) for h in (0, 1))
        return reduce(k.b.add, (instrs.SMULL16(k, h, e) for h, e in zip(halves, x)), acc)


def _half(k: Kernel, x: Val, which: int) -> Any:
    lanes = x.regs[0].type.count // 2
    return instrs.pick(k.b, x.regs[0], list(range(lanes * which, lanes * which + lanes)))


FORMS: dict[str, Dot] = {
    "vpdpbusd": Vpdpbusd(offset=128),
    "maddubs": Maddubs(steps=4, prepare=1, multiplies=2, scratch=5, cells=((0, 1), (2, 3)), unsigned=True),
    "sdot": Sdot(wide=4, held=1),
    "smmla": Smmla(wide=2, held=4, prepare=1.5, group=8, pixels=2, weights=0, finishing=1, fenced=True),
    "smull": Smull(steps=3, prepare=2, multiplies=3, scratch=8, weights=2, cells=((0, 2), (1, 3)), fenced=True),
    "lengthwise": Lengthwise(
        steps=3,
        multiplies=3,
        scratch=6,
        group=16,
        weights=8,
        finishing=4,
        fenced=True,
        late=True,
        cells=tuple((i, i + 8) for i in range(8)),
        links=2,
    ),
}


WORDS: dict[str, Dot] = {
    "vpdpwssd": Vpdpwssd(itemsize=2, widening=1),
    "maddwd": Maddwd(itemsize=2, widening=1, steps=2, scratch=3),
    "smlal": Smlal(itemsize=2, widening=1, steps=2, multiplies=2, wide=4, held=1, scratch=3),
}
"""Those of activations of 16 bits."""
OF_WORDS = {"vpdpbusd": "vpdpwssd", "maddubs": "maddwd", "sdot": "smlal", "smull": "smlal"}


def form_named(name: str) -> Dot:
    """The form, of activations of either width."""
    return FORMS.get(name) or WORDS[name]


def forms_for(target: Target, bits: int) -> tuple[str, ...]:
    """The forms that dense layers whose activations have so many bits may have."""
    return dense_forms(target) if bits == 8 else (OF_WORDS[target.dot],)


def dot_of(target: Target) -> Dot:
    """The form of `target` for groups of four."""
    return FORMS[target.dot]


def dense_forms(target: Target) -> tuple[str, ...]:
    """The forms that dense layers may have, the one of the highest peak last."""
    return (target.dot, *target.dense)


def densest(target: Target) -> Dot:
    """The form of the highest peak."""
    return FORMS[dense_forms(target)[-1]]
