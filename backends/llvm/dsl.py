"""A small typed language over llvmlite in which all kernels are written.

`Val` is a bundle of one or more whole vector registers of signed lanes of one width. It implements the `Lanes` protocol,
so that `numerics.requantize_biased` writes code when it is given `Val`s. Operands of different widths are refused.

**Order of lanes.** Narrowing (`sat`) and widening (`sext`) work within 128-bit parts, as the x86 packs and unpacks do: two
registers of 16-bit lanes pack into one of 8-bit lanes that holds part 0 of the first, part 0 of the second, part 1 of
the first ... and `sext` undoes it exactly. So an 8-bit register loaded from memory, widened to 32 bits (four registers),
computed with, and narrowed again, is in memory order when it is stored; between, nobody needs to know the order. Constants
per channel that meet wide lanes are permuted at compile time (`order.wide_order`). A bundle with too few registers to fill the
narrower one is repeated within each part.

`Ptr` and `Index` are addresses and 64-bit integers; offsets in bytes, constants folded here.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from . import instrs
from .order import part_halves
from .registers import I8, I32, I64, PTR, Carried, Index, MixedWidths, Ptr, Val, join, rebuilt, registers_of
from .target import Target, host_arch

__all__ = ["I8", "I32", "I64", "PTR", "WHOLE", "WHOLE_BITS", "Carried", "Index", "Kernel", "MixedWidths", "Ptr", "Span", "Val", "join", "rodata"]


@dataclass
class Span:
    """Which part of its split loops a kernel runs: of n rounds [bound(first), bound(last)), bound(x) = min(n, floor((n + 1) x / WHOLE)).

    Of 14 rounds four pieces are 3, 4, 4 and 3, not 3, 4, 3 and 4: two threads that take turns have 7 each.

    `units` is the greatest n met so far; `inside` is true while such a loop is open: loops within it run whole."""

    first: Any
    last: Any
    units: int = 0
    inside: bool = False


WHOLE_BITS = 32
WHOLE = 1 << WHOLE_BITS


def function_name(family: str, emit: Callable[[Kernel, Any], None], config: Hashable) -> str:
    """Of the function that `emit` writes for `config`."""
    return f"{family}_{emit.__name__.removeprefix('emit_')}_{sha256(repr(config).encode()).hexdigest()[:8]}"


class Kernel:
    """A function under construction: its target, module, parameters and the place where code goes.

    `numbers` are the types of further parameters behind the pointers. `span`: the last two of them say which part is run."""

    span: Span | None = None

    def __init__(
        self,
        module: Any,
        target: Target,
        name: str,
        parameters: Sequence[str],
        returns: Any = None,
        internal: bool = True,
        numbers: Sequence[Any] = (),
    ) -> None:
        self.module, self.target = module, target
        kind = ir.FunctionType(returns or ir.VoidType(), [PTR] * len(parameters) + list(numbers))
        self.function = ir.Function(module, kind, name)
        if internal:
            self.function.linkage = "internal"
        for word in ("nounwind",) + (("noinline",) if internal else ()):
            self.function.attributes.add(word)
        self.b: Any = ir.IRBuilder(self.function.append_basic_block("entry"))
        for arg, word in zip(self.function.args, parameters):
            arg.name = word
            arg.add_attribute("noalias")
        self.parameters = tuple(Ptr(self, arg) for arg in self.function.args[: len(parameters)])
        self.numbers: tuple[Any, ...] = tuple(self.function.args[len(parameters) :])

    @classmethod
    def divided(cls, module: Any, target: Target, name: str, parameters: Sequence[str]) -> Kernel:
        """A function with two more parameters: the part of its split loops that it runs."""
        k = cls(module, target, name, parameters, numbers=(I64, I64))
        k.span = Span(*k.numbers)
        return k

    def narrowed(self, bits: int) -> Kernel:
        """The same function, written on in vectors of `bits`."""
        if bits == self.target.vector_bits:
            return self
        k = copy(self)
        k.target = self.target.narrowed(bits)
        return k

    def i64(self, value: Index | int) -> Any:
        """LLVM's 64-bit integer."""
        return value.ir if isinstance(value, Index) else ir.Constant(I64, value)

    def register_type(self, bits: int) -> Any:
        """A whole vector register of lanes of `bits`."""
        return instrs.vector_type((self.target.vector_bits // bits, bits))

    def intrinsic(self, name: str, *args: Any) -> Any:
        """One of LLVM's generic intrinsics that take and return the type of `args[0]`."""
        kind = args[0].type
        full = f"llvm.{name}.v{kind.count}i{kind.element.width}"
        function = self.module.globals.get(full) or ir.Function(self.module, ir.FunctionType(kind, [a.type for a in args]), full)
        return self.b.call(function, args)

    # --- control -----------------------------------------------------------------------------------------------------

    @contextmanager
    def loop(self, n: int, carry: Sequence[Carried] = ()) -> Iterator[tuple[Index | int, list[Carried]]]:
        """`with k.loop(n, [x, p]) as (i, carried)`: n >= 1 rounds; assign `carried[j]` inside, read it inside and after.

        A single round emits no loop. Carried values live in registers (phi nodes).
        """
        carried = list(carry)
        if n == 1:
            yield 0, carried
            return
        before, initial = self.b.block, [registers_of(c) for c in carried]
        body = self.function.append_basic_block("loop")
        self.b.branch(body)
        self.b.position_at_end(body)
        index = self.b.phi(I64)
        index.add_incoming(self.i64(0), before)
        phis = [[self._phi(r, before) for r in regs] for regs in initial]
        carried[:] = [rebuilt(c, p) for c, p in zip(carried, phis)]
        yield Index(self, index), carried
        following = self.b.add(index, self.i64(1), flags=["nuw", "nsw"])
        final = [registers_of(c) for c in carried]
        for phi, value in ((p, r) for ps, rs in zip(phis, final) for p, r in zip(ps, rs, strict=True)):
            phi.add_incoming(value, self.b.block)
        index.add_incoming(following, self.b.block)
        after = self.function.append_basic_block("after")
        self.b.cbranch(self.b.icmp_unsigned("<", following, self.i64(n)), body, after)
        self.b.position_at_end(after)
        carried[:] = [rebuilt(c, r) for c, r in zip(carried, final)]

    @contextmanager
    def split(self, n: int, here: bool = True) -> Iterator[Index | int]:
        """As `loop(n)` without carried values, but a divided kernel runs only its part of the rounds. Of nested ones the outermost counts.

        `here` False: an ordinary loop."""
        span = self.span
        if span is None or span.inside or not here:
            with self.loop(n) as (i, _):
                yield i
            return
        with self._part(span, n, 1, 1) as (index, _):
            yield index

    @contextmanager
    def bands(self, rows: int, width: int, size: int) -> Iterator[Index | int]:
        """Positions of tiles of `size` pixels that cover `rows` of `width` pixels each, one after another in memory. A divided kernel covers
        its part of the rows; the last tile of a part is moved back inside. `size` is at most `width`."""
        span = self.span
        if span is None or span.inside:
            with self.loop(-(-rows * width // size)) as (i, _):
                yield 0 if isinstance(i, int) else Index(self, self.b.mul(i.ir, self.i64(size))).minimum(rows * width - size)
            return
        with self._part(span, rows, width, size) as (index, end):
            yield index if isinstance(index, int) else index.minimum(end - size)

    @contextmanager
    def _part(self, span: Span, n: int, width: int, step: int) -> Iterator[tuple[Index | int, Index]]:
        """Every `step`-th position of the span's part of n rounds, each of `width` positions; and where the part ends."""
        first, last = (self.b.mul(bound, self.i64(width)) for bound in self._bounds(span, n))
        before, body, after = self.b.block, self.function.append_basic_block("part"), self.function.append_basic_block("after")
        self.b.cbranch(self.b.icmp_unsigned("<", first, last), body, after)
        self.b.position_at_end(body)
        span.units, span.inside = max(span.units, n), True
        if n * width <= step:
            yield 0, Index(self, last)
            self.b.branch(after)
        else:
            index = self.b.phi(I64)
            index.add_incoming(first, before)
            yield Index(self, index), Index(self, last)
            following = self.b.add(index, self.i64(step), flags=["nuw", "nsw"])
            index.add_incoming(following, self.b.block)
            self.b.cbranch(self.b.icmp_unsigned("<", following, last), body, after)
        self.b.position_at_end(after)
        span.inside = False

    def _bounds(self, span: Span, n: int) -> tuple[Any, Any]:
        first, last = (self.b.lshr(self.b.mul(bound, self.i64(n + 1)), self.i64(WHOLE_BITS)) for bound in (span.first, span.last))
        return first, self.b.select(self.b.icmp_unsigned("<", last, self.i64(n)), last, self.i64(n))

    def first(self, n: int) -> Index | int:
        """Of n rounds of a split loop the first that this kernel runs."""
        return 0 if self.span is None else Index(self, self._bounds(self.span, n)[0])

    @contextmanager
    def rounds(self, n: Index, carry: Sequence[Carried]) -> Iterator[list[Carried]]:
        """As `loop`, with a number of rounds that is known at run time and may be zero."""
        carried, before, b = list(carry), self.b.block, self.b
        test, body, after = (self.function.append_basic_block(name) for name in ("test", "body", "after"))
        initial = [registers_of(c) for c in carried]
        b.branch(test)
        b.position_at_end(test)
        left = b.phi(I64)
        left.add_incoming(n.ir, before)
        phis = [[self._phi(r, before) for r in regs] for regs in initial]
        b.cbranch(b.icmp_signed(">", left, self.i64(0)), body, after)
        b.position_at_end(body)
        carried[:] = [rebuilt(c, p) for c, p in zip(carried, phis)]
        yield carried
        final = [registers_of(c) for c in carried]
        for phi, value in ((p, r) for ps, rs in zip(phis, final) for p, r in zip(ps, rs, strict=True)):
            phi.add_incoming(value, b.block)
        left.add_incoming(b.sub(left, self.i64(1)), b.block)
        b.branch(test)
        b.position_at_end(after)
        carried[:] = [rebuilt(c, p) for c, p in zip(carried, phis)]

    def unseen(self) -> Any:
        """A variable for `when_new` that holds no index yet."""
        with self.b.goto_entry_block():
            variable = self.b.alloca(I64)
        self.b.store(self.i64(-1), variable)
        return variable

    @contextmanager
    def when_new(self, variable: Any, index: Index | int) -> Iterator[None]:
        """What is written within runs only where `variable` holds another index than this one, which it then holds."""
        body, after = (self.function.append_basic_block(name) for name in ("new", "known"))
        self.b.cbranch(self.b.icmp_signed("!=", self.b.load(variable, typ=I64), self.i64(index)), body, after)
        self.b.position_at_end(body)
        self.b.store(self.i64(index), variable)
        yield
        self.b.branch(after)
        self.b.position_at_end(after)

    def function_of(self, emit: Callable[[Kernel, Any], None], config: Hashable, parameters: Sequence[str]) -> Any:
        """The function whose body `emit(k, config)` writes, one for the module."""
        name = function_name(self.module.name, emit, config)
        if name not in self.module.globals:
            k = Kernel(self.module, self.target, name, parameters)
            emit(k, config)
            k.ret()
        return self.module.globals[name]

    def load_index(self, p: Ptr, bits: int = 32) -> Index:
        """The number, not negative, in the `bits` bits at `p`."""
        return Index(self, self.b.zext(self.b.load(p.ir, align=bits // 8, typ=ir.IntType(bits)), I64))

    def store_index(self, p: Ptr, index: Index) -> None:
        """A number to the 32 bits at `p`."""
        self.b.store(self.b.trunc(index.ir, I32), p.ir, align=4)

    def _phi(self, initial: Any, before: Any) -> Any:
        phi = self.b.phi(initial.type)
        phi.add_incoming(initial, before)
        return phi

    def fence(self) -> None:
        """Nothing is loaded or stored across this place; no instruction."""
        self.b.asm(ir.FunctionType(ir.VoidType(), []), "", "~{memory}", [], side_effect=True)

    def settled(self, value: Val) -> Val:
        """`value`, computed before anything that follows is loaded; no instruction."""
        return self._opaque(value, ",~{memory}", True)

    def opaque(self, value: Val) -> Val:
        """`value`, of which LLVM knows nothing any more; no instruction."""
        return self._opaque(value, "", False)

    def _opaque(self, value: Val, clobbers: str, ordered: bool) -> Val:
        arch = host_arch() if self.target.by_meaning else self.target.arch
        constraint = f"={'w' if arch == 'aarch64' else 'x'},0{clobbers}"
        return value.map(lambda r: self.b.asm(ir.FunctionType(r.type, [r.type]), "", constraint, [r], side_effect=ordered))

    def ret(self, value: int | None = None) -> Any:
        """End the function; returns it."""
        if value is None:
            self.b.ret_void()
        else:
            self.b.ret(ir.Constant(I32, value))
        return self.function

    # --- constants ---------------------------------------------------------------------------------------------------

    def splat(self, value: int, bits: int) -> Val:
        """One register with `value` in every lane."""
        return Val(self, (instrs.splat(self.register_type(bits), value),), bits)

    def constant(self, data: NDArray[np.generic]) -> Ptr:
        """A private constant in .rodata, aligned to 64."""
        return Ptr(self, rodata(self.module, self.module.get_unique_name("constant"), data.tobytes()))

    # --- memory ------------------------------------------------------------------------------------------------------

    def load(self, p: Ptr, bits: int, count: int = 1, align: int = 1) -> Val:
        """`count` consecutive whole registers as they lie in memory."""
        size, kind = self.target.vector_bytes, self.register_type(bits)
        return Val(self, tuple(self.b.load((p + i * size).ir, align=align, typ=kind) for i in range(count)), bits)

    def load_lanes(self, p: Ptr, bits: int, nbytes: int) -> Val:
        """The first `nbytes` of one register, the rest of it unspecified; reads up to a power of two of bytes."""
        size = self.target.vector_bytes
        if nbytes > size // 2:
            return self.load(p, bits)
        width = 1 << max(nbytes - 1, 0).bit_length()
        piece = self.b.load(p.ir, align=1, typ=instrs.vector_type((width, 8)))
        whole = instrs.pick(self.b, piece, [i % width for i in range(size)])
        return Val(self, (self.b.bitcast(whole, self.register_type(bits)),), bits)

    def store(self, p: Ptr, value: Val, nbytes: int | None = None, start: int = 0) -> None:
        """`nbytes` bytes of the one register of `value` from byte `start` on; never writes outside."""
        size, (reg,) = self.target.vector_bytes, value.regs
        count = size if nbytes is None else nbytes
        if count == size:
            self.b.store(reg, p.ir, align=1)
            return
        octets, done = self.b.bitcast(reg, self.register_type(8)), 0
        while done < count:
            width = 1 << ((count - done).bit_length() - 1)
            self.b.store(self._piece(octets, start + done, width), (p + done).ir, align=1)
            done += width

    def _piece(self, octets: Any, start: int, width: int) -> Any:
        """`width` bytes: as one lane where they are one, as a vector of 8 bits is taken apart byte by byte."""
        if start % width or width > 8:
            return instrs.pick(self.b, octets, [start + i for i in range(width)])
        return self.b.extract_element(self.b.bitcast(octets, self.register_type(8 * width)), ir.Constant(I32, start // width))

    def broadcast(self, p: Ptr, bits: int) -> Val:
        """The lane of `bits` at `p`, in every lane of one register."""
        return self.permute(self.lane(p, bits), [0] * (self.target.vector_bits // bits))

    def lane(self, p: Ptr, bits: int) -> Val:
        """The lane of `bits` at `p` as the first of one register, the others unspecified. On Arm one of 32 is called a float, which no instruction
        computes with: an integer that two registers want would be loaded into a general one."""
        kind = self.register_type(bits)
        typ = ir.FloatType() if self.target.arch == "aarch64" and bits == 32 else kind.element
        lane, none = self.b.load(p.ir, align=1, typ=typ), ir.Constant(ir.VectorType(typ, kind.count), ir.Undefined)
        return Val(self, (self.b.bitcast(self.b.insert_element(none, lane, ir.Constant(I32, 0)), kind),), bits)

    def load_activation(self, p: Ptr, count: int = 1) -> Val:
        """Whole registers of stored activations, as signed 8-bit values."""
        return self.unbias(self.load(p, 8, count))

    def load_activation_lanes(self, p: Ptr, nbytes: int) -> Val:
        """The first `nbytes` activations of a register, the rest unspecified."""
        return self.unbias(self.load_lanes(p, 8, nbytes))

    def store_activation(self, p: Ptr, value: Val, nbytes: int | None = None, start: int = 0) -> None:
        """Signed 8-bit values to where activations are stored."""
        self.store(p, self.unbias(value), nbytes, start)

    def unbias(self, value: Val) -> Val:
        """Stored activations to signed values, and back: xor 0x80 where the target stores them offset by 128."""
        return value ^ value.splat(-128) if self.target.storage_offset else value

    def unsigned(self, value: Val) -> Val:
        """Stored activations as unsigned bytes, 128 more than they mean."""
        return value if self.target.storage_offset else value ^ value.splat(-128)

    # --- lanes -------------------------------------------------------------------------------------------------------

    def pack(self, x: Any, y: Any) -> Any:
        """Two registers saturated to half the width in one, within 128-bit parts."""
        wide = x.type.element.width
        if self.target.arch != "aarch64":
            return (instrs.PACK16 if wide == 32 else instrs.PACK8)[self.target.vector_bits](self, x, y)
        narrow = instrs.SQXTN16 if wide == 32 else instrs.SQXTN8
        return instrs.shuffle(self.b, narrow(self, x), narrow(self, y), list(range(2 * x.type.count)))

    def unpack(self, x: Any) -> tuple[Any, Any]:
        """One register in two of double width, within 128-bit parts."""
        lanes, bits = x.type.count, x.type.element.width
        low, high = part_halves(lanes, bits)
        if self.target.parts == 1:
            return instrs.widen(self.b, instrs.pick(self.b, x, low), 2 * bits), instrs.widen(self.b, instrs.pick(self.b, x, high), 2 * bits)
        return self._extend(x, low), self._extend(x, high)

    def _extend(self, x: Any, picks: list[int]) -> Any:
        """Each picked lane doubled, then shifted down with its sign: punpck and psra."""
        bits = x.type.element.width
        doubled = instrs.pick(self.b, x, [i for p in picks for i in (p, p)])
        wide = self.b.bitcast(doubled, self.register_type(2 * bits))
        return self.b.ashr(wide, instrs.splat(wide.type, bits))

    def zip(self, x: Val, y: Val) -> tuple[Val, Val]:
        """Low and high halves of every part, lanes of x and y in turn (punpckl/h, zip1/2)."""
        (a,), (c,) = x.regs, y.regs
        lanes = a.type.count
        halves = part_halves(lanes, x.bits)
        low, high = (instrs.shuffle(self.b, a, c, [i for p in half for i in (p, lanes + p)]) for half in halves)
        return Val(self, (low,), x.bits), Val(self, (high,), x.bits)

    def absolute(self, x: Any) -> Any:
        """|x| of one register; -2^(bits-1) stays, and is right when read as unsigned."""
        return self.intrinsic("abs", x, ir.Constant(ir.IntType(1), 0))

    def reinterpret(self, x: Val, bits: int) -> Val:
        """The same registers read as lanes of another width."""
        return Val(self, tuple(self.b.bitcast(r, self.register_type(bits)) for r in x.regs), bits)

    def permute(self, x: Val, picks: Sequence[int]) -> Val:
        """Lane i of each register is its lane picks[i]."""
        return x.map(lambda r: instrs.pick(self.b, r, list(picks)))


def rodata(module: Any, name: str, data: bytes) -> Any:
    """A private constant global, aligned to 64."""
    kind = ir.ArrayType(I8, len(data))
    g = ir.GlobalVariable(module, kind, name)
    g.linkage, g.global_constant, g.align, g.unnamed_addr = "private", True, 64, True
    g.initializer = ir.Constant(kind, bytearray(data))
    return g
