"""A program in memory: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .arena import ArenaPool
from .artifact import Interface, Tensor
from .errors import InputError, OutOfRange
from .executor import Call, Executor, NativeExecutor
from .workers import WorkerPool

Array = NDArray[Any]


class _Form:
    """One of the shapes that a network was compiled for, and what of it every call asks."""

    def __init__(self, interface: Interface) -> None:
        self.interface, self.inputs, self.outputs = interface, interface.inputs, interface.outputs
        self.expected, self.results = (tuple(_described(tensors, i) for i in (False, True)) for tensors in (self.inputs, self.outputs))
        self.names = interface.entry(integer=False), interface.entry(integer=True)
        self.divided = tuple(interface.entry(integer, parallel=True) for integer in (False, True)) if interface.parallel else self.names


class Program:
    """A compiled network. Calls from several threads may overlap: one of them has the workers, the others compute alone.

    Where it was compiled for several shapes, that one runs which the inputs have."""

    def __init__(self, interface: Interface, executor: Executor, threads: int = 1) -> None:
        self.interface = interface
        self.executor = executor
        self._arenas = ArenaPool(interface.arena_size)
        self._forms = tuple(map(_Form, interface.forms))
        self._workers: WorkerPool | None = None
        self.threads = threads

    @classmethod
    def of_image(cls, interface: Interface, image: bytes | bytearray, entries: Mapping[str, int], threads: int = 1) -> Program:
        """From the bytes of a flat image for this machine."""
        return cls(interface, NativeExecutor.of_image(image, entries), threads)

    @property
    def threads(self) -> int:
        """How many threads compute one call, the caller's included; the answers are the same bits. 1 where the program is emulated."""
        return self._workers.threads if self._workers else 1

    @threads.setter
    def threads(self, count: int) -> None:
        if count < 1:
            raise InputError(f"expected at least one thread, found {count}")
        if count == self.threads:
            return
        before, self._workers = self._workers, self._hired(count)
        if before is not None:
            before.close()

    def _hired(self, count: int) -> WorkerPool | None:
        if count == 1 or not self.interface.parallel or not isinstance(self.executor, NativeExecutor):
            return None
        return WorkerPool(self.executor.addresses, self.interface.pool, count, self.executor.owner)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Names, shapes and types of the inputs, those of the largest where there are several forms (`interface.forms`)."""
        return self.interface.inputs

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """Names, shapes and types of the outputs, likewise."""
        return self.interface.outputs

    def run(self, feeds: Mapping[str, ArrayLike]) -> dict[str, Array]:
        """Real numbers in, real numbers out; integers inside. A larger leading batch is looped over."""
        return self._run(feeds, integer=False)

    def run_integer(self, feeds: Mapping[str, ArrayLike]) -> dict[str, Array]:
        """Quantized inputs to quantized outputs."""
        return self._run(feeds, integer=True)

    def _run(self, feeds: Mapping[str, ArrayLike], integer: bool) -> dict[str, Array]:
        for form in self._forms:
            if (arrays := _exact(form.expected[integer], feeds)) is not None:
                return self._run_exactly(form, arrays, integer)
        form = _fitting(self._forms, feeds)
        arrays = _checked(form.inputs, feeds, integer)
        count = _batch(form.inputs, arrays)
        rows = [a.reshape(count, *t.shape) for t, a in zip(form.inputs, arrays)]
        results = [np.empty((count, *t.shape), _dtype(t, integer)) for t in form.outputs]
        with self._arenas.lend() as arena, self._entry(form, integer) as call:
            for i in range(count):
                given = [_row(r, i) for r in rows]
                try:
                    call(given, [_row(r, i) for r in results], arena)
                except OutOfRange as refused:
                    raise _out_of_range(form.inputs[refused.index], given[refused.index], i) from None
        return {t.name: _merged(r, t.shape) for t, r in zip(form.outputs, results)}

    def _run_exactly(self, form: _Form, arrays: list[Array], integer: bool) -> dict[str, Array]:
        """One sample from arrays that need no conversion: small programs take no longer than what comes before and after."""
        results = {name: np.empty(shape, dtype) for name, shape, dtype in form.results[integer]}
        arena = self._arenas.take()
        try:
            with self._entry(form, integer) as call:
                call(arrays, list(results.values()), arena)
        except OutOfRange as refused:
            raise _out_of_range(form.inputs[refused.index], arrays[refused.index], 0) from None
        finally:
            self._arenas.give_back(arena)
        return results

    def _entry(self, form: _Form, integer: bool) -> _Entry:
        """The function to call: with the workers where there are any, they are free, and the form has work for them."""
        workers = self._workers if form.interface.divided else None
        return _Entry(self.executor, workers, form.names[integer], form.divided[integer])


class _Entry:
    """A function of compiled code within a `with`, which a small program enters faster than a generator."""

    def __init__(self, executor: Executor, workers: WorkerPool | None, name: str, divided: str) -> None:
        self._executor, self._workers, self._name, self._divided = executor, workers, name, divided

    def __enter__(self) -> Call:
        workers, executor = self._workers, self._executor
        if workers is not None and isinstance(executor, NativeExecutor) and workers.claim():
            return executor.divided(self._divided, workers.parallel_for, workers.address)
        self._workers = None
        return partial(executor.call, self._name)

    def __exit__(self, *_: object) -> None:
        if self._workers is not None:
            self._workers.release()


Description = tuple[str, tuple[int, ...], np.dtype[Any]]
"""Name, shape and type of an array."""


def _described(tensors: Iterable[Tensor], integer: bool) -> tuple[Description, ...]:
    return tuple((t.name, t.shape, _dtype(t, integer)) for t in tensors)


def _exact(expected: tuple[Description, ...], feeds: Mapping[str, ArrayLike]) -> list[Array] | None:
    """The feeds in order, where they are dense arrays of just these shapes and types."""
    if len(feeds) != len(expected):
        return None
    found = list[Array]()
    for name, shape, dtype in expected:
        array = feeds.get(name)
        if type(array) is not np.ndarray or array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
            return None
        found.append(array)
    return found


def _fitting(forms: Sequence[_Form], feeds: Mapping[str, ArrayLike]) -> _Form:
    """The first form, from the largest on, whose shapes the feeds have; InputError lists them where there is none."""
    if len(forms) == 1 or set(feeds) != {t.name for t in forms[0].inputs}:
        return forms[0]
    found = {name: _array(name, x).shape for name, x in feeds.items()}
    for form in forms:
        if all(fits(t.shape, found[t.name]) for t in form.inputs):
            return form
    compiled = "; ".join(_shapes({t.name: t.shape for t in form.inputs}) for form in forms)
    raise InputError(
        f"inputs {_shapes(found)} have none of the shapes that were compiled: {compiled} (or multiples in front); "
        "pad the sequence to the next length and mask it, or compile with one --shape more"
    )


def _shapes(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"'{name}' {shape}" for name, shape in shapes.items())


def fits(shape: tuple[int, ...], given: tuple[int, ...]) -> bool:
    """Whether `given` is `shape`, or a multiple of it along the leading axis."""
    same = len(given) == len(shape) and given[1:] == shape[1:]
    return same and (not shape or (given[0] > 0 and given[0] % shape[0] == 0))


def _row(array: Array, index: int) -> Array:
    """A view, also where rows are scalars."""
    return array[index : index + 1].reshape(array.shape[1:])


def _merged(rows: Array, shape: tuple[int, ...]) -> Array:
    """Batch and leading axis as one."""
    if not shape:
        return rows.reshape(()) if len(rows) == 1 else rows
    return rows.reshape(len(rows) * shape[0], *shape[1:])


def _dtype(tensor: Tensor, integer: bool) -> np.dtype[Any]:
    return np.dtype(tensor.storage if integer else tensor.dtype)


def _checked(inputs: tuple[Tensor, ...], feeds: Mapping[str, ArrayLike], integer: bool) -> list[Array]:
    """The arrays in order, dense and of the right type; InputError where they are not."""
    expected = [t.name for t in inputs]
    if set(feeds) != set(expected):
        raise InputError(f"expected inputs {', '.join(map(repr, expected))}, found {', '.join(map(repr, feeds)) or 'none'}")
    return [_converted(t, _array(t.name, feeds[t.name]), integer) for t in inputs]


def _array(name: str, given: ArrayLike) -> Array:
    """What was given as an array; InputError where its rows differ in length."""
    try:
        return np.asarray(given)
    except ValueError as error:
        raise InputError(f"input '{name}': expected an array, found rows of different lengths; pad them to one length and mask the rest") from error


def _out_of_range(tensor: Tensor, array: Array, sample: int) -> InputError:
    """What is wrong with an input that the program refused, in sample number `sample`."""
    low, high = tensor.interval
    place = tuple(int(n) for n in np.argwhere((array < low) | (array > high))[0])
    where = f" of sample {sample}" if sample else ""
    return InputError(f"input '{tensor.name}': expected integers in [{low}, {high}], found {array[place]} at {list(place)}{where}")


def _converted(tensor: Tensor, array: Array, integer: bool) -> Array:
    dtype = _dtype(tensor, integer)
    same_kind = array.dtype.kind == "f" and dtype.kind == "f"
    if tensor.scale is None and array.dtype.kind in "iub" and dtype.kind in "iu":
        _checkfits(tensor, array, dtype)
    elif array.dtype != dtype and not same_kind:
        quantized = integer and tensor.scale is not None
        hint = "quantize it with the input's scale and zero point" if quantized else f"convert it with .astype('{dtype}')"
        raise InputError(f"input '{tensor.name}': expected {dtype}, found {array.dtype}; {hint}")
    return np.ascontiguousarray(array, dtype).reshape(array.shape)


def _checkfits(tensor: Tensor, array: Array, dtype: np.dtype[Any]) -> None:
    """Integers of another width are converted, unless one of them would change."""
    if array.size and not np.can_cast(array.dtype, dtype):
        least, greatest, bounds = int(array.min()), int(array.max()), np.iinfo(dtype)
        if least < bounds.min or greatest > bounds.max:
            raise InputError(f"input '{tensor.name}': expected {dtype}, found {array.dtype} in [{least}, {greatest}], which does not fit")


def _batch(inputs: tuple[Tensor, ...], arrays: list[Array]) -> int:
    """How often the program's own shape fits the leading axis: the same number for every input."""
    counts = [_repeats(t, a) for t, a in zip(inputs, arrays)]
    if len(set(counts)) > 1:
        found = ", ".join(f"'{t.name}' {a.shape}" for t, a in zip(inputs, arrays))
        raise InputError(f"expected the same batch in every input, found {found}")
    return counts[0] if counts else 1


def _repeats(tensor: Tensor, array: Array) -> int:
    shape = tensor.shape
    if not fits(shape, array.shape):
        batch = f" (or a multiple of {shape[0]} in front)" if shape else ""
        raise InputError(f"input '{tensor.name}': expected shape {shape}{batch}, found {array.shape}{_remedy(tensor, array)}")
    return array.size // prod(shape)


def _remedy(tensor: Tensor, array: Array) -> str:
    """What to do about a sequence of another length."""
    fits = array.ndim == len(tensor.shape) > 1 and tensor.scale is None and array.size
    if not fits or array.shape[1:] == tensor.shape[1:]:
        return ""
    lengths, wanted = (", ".join(map(str, s[1:])) for s in (tensor.shape, array.shape))
    given = ",".join(map(str, (tensor.shape[0], *array.shape[1:])))
    return f": the length {lengths} was compiled, not {wanted}; pad the sequence and mask it, or compile with --shape {tensor.name}={given}"
