"""Programs that run in a process of their own, which is spoken to through pipes: the words of `runner`, whatever carries them."""

from __future__ import annotations

import subprocess
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import IO

import numpy as np
from numpy.typing import NDArray

from qcompiler.runtime.errors import MachineError
from qcompiler.runtime.executor import Array, check_status

Failure = Callable[[str, int, str], MachineError]
"""(what was being done, exit status, what was written to standard error) -> the error to raise."""


class ProcessExecutor:
    """Speaks with a running `runner` that has the entries `names`; calls take turns."""

    def __init__(self, process: subprocess.Popen[bytes], names: Sequence[str], failure: Failure) -> None:
        self._process, self._names, self._failure = process, tuple(names), failure
        self._lock = threading.Lock()
        self.repetitions = 1
        self.nanoseconds: list[int] = []
        """Of each repetition of the last call, by the clock of the machine that ran it."""
        self.close = weakref.finalize(self, _end, process)

    def call(self, entry: str, inputs: Sequence[Array], outputs: Sequence[Array], arena: NDArray[np.uint8]) -> None:
        """As `Executor.call`, `repetitions` times; the arena is the process's own."""
        sizes = [a.nbytes for a in (*inputs, *outputs)]
        words = np.array([self._names.index(entry), len(inputs), len(outputs), arena.nbytes, self.repetitions, *sizes], "<u8")
        with self._lock:
            self._send(entry, [words.tobytes(), *(a.tobytes() for a in inputs)])
            *self.nanoseconds, status = np.frombuffer(self._receive(entry, 8 * self.repetitions + 8), "<i8").tolist()
            for array in outputs:
                array[...] = np.frombuffer(self._receive(entry, array.nbytes), array.dtype).reshape(array.shape)
        check_status(entry, status)

    def _send(self, entry: str, parts: Sequence[bytes]) -> None:
        try:
            for part in parts:
                pipe(self._process.stdin).write(part)
            pipe(self._process.stdin).flush()
        except BrokenPipeError:
            raise self._died(entry) from None

    def _receive(self, entry: str, size: int) -> bytes:
        data = pipe(self._process.stdout).read(size)
        if len(data) != size:
            raise self._died(entry)
        return data

    def _died(self, entry: str) -> MachineError:
        return self._failure(f"running {entry}", *ended(self._process))


def pipe(stream: IO[bytes] | None) -> IO[bytes]:
    """A stream that was asked for."""
    if stream is None:
        raise MachineError("the process has no pipe")
    return stream


def ended(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    """Exit status of a process that is ending, and the last of what it had to say."""
    code = process.wait()
    return code, pipe(process.stderr).read().decode(errors="replace").strip()[-500:]


def _end(process: subprocess.Popen[bytes]) -> None:
    """Close the input, at whose end the runner ends; insist where it does not."""
    if process.stdin is not None:
        try:
            process.stdin.close()
        except BrokenPipeError:
            process.kill()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()
