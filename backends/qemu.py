"""Running foreign programs under qemu-user, as a process that is spoken to through pipes.

A small driver is linked statically with the object by a cross compiler (Debian: `apt install qemu-user gcc-aarch64-linux-gnu`). It reads calls from
its standard input and answers on its standard output, in 64-bit words of the target's (little) order:

    call:   entry, number of inputs, number of outputs, bytes of the arena, bytes of each buffer; then the inputs
    answer: what the entry returned; then the outputs
"""

from __future__ import annotations

import subprocess
import tempfile
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from shutil import rmtree, which
from typing import IO

import numpy as np
from numpy.typing import NDArray

from qcompiler.runtime.errors import MachineError
from qcompiler.runtime.executor import Array, check_status

COMPILER, EMULATOR = "{arch}-linux-gnu-gcc", "qemu-{arch}"

_DRIVER = """\
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
typedef int entry_t(const void *const *, void *const *, void *);
{declarations}
static entry_t *const entries[] = {{{names}}};
static uint64_t word(void) {{
    uint64_t value;
    if (fread(&value, 8, 1, stdin) != 1) exit(0);
    return value;
}}
static void *block(uint64_t size) {{
    void *memory = aligned_alloc(64, (size + 127) / 64 * 64);
    if (!memory) exit(2);
    return memory;
}}
static void call(void) {{
    uint64_t entry = word(), inputs = word(), outputs = word(), n = inputs + outputs, i, status;
    void *arena = block(word()), **buffers = block(n * sizeof(void *));
    uint64_t *sizes = block(n * 8);
    for (i = 0; i < n; i++) sizes[i] = word();
    for (i = 0; i < n; i++) buffers[i] = block(sizes[i]);
    for (i = 0; i < inputs; i++) if (sizes[i] && fread(buffers[i], sizes[i], 1, stdin) != 1) exit(2);
    status = (uint64_t)entries[entry]((const void *const *)buffers, buffers + inputs, arena);
    fwrite(&status, 8, 1, stdout);
    for (i = inputs; i < n; i++) fwrite(buffers[i], 1, sizes[i], stdout);
    fflush(stdout);
    for (i = 0; i < n; i++) free(buffers[i]);
    free(sizes), free(buffers), free(arena);
}}
int main(void) {{ for (;;) call(); }}
"""


def missing_tools(arch: str) -> list[str]:
    """Programs that running `arch` needs and that are not installed."""
    return [tool for tool in (COMPILER.format(arch=arch), EMULATOR.format(arch=arch)) if which(tool) is None]


class QemuExecutor:
    """Runs a Linux object in a process of qemu-user; calls take turns."""

    def __init__(self, obj: bytes, names: Sequence[str], arch: str) -> None:
        if missing := missing_tools(arch):
            raise MachineError(f"running {arch} code with these CPU features needs {' and '.join(missing)}; install them, or choose another target")
        self._names = tuple(names)
        self._lock = threading.Lock()
        self._folder = Path(tempfile.mkdtemp(prefix="qcompiler-qemu-"))
        weakref.finalize(self, rmtree, self._folder, ignore_errors=True)
        program = _link(self._folder, obj, self._names, arch)
        self._process = subprocess.Popen(
            [EMULATOR.format(arch=arch), "-cpu", "max", str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        weakref.finalize(self, _end, self._process)

    def call(self, entry: str, inputs: Sequence[Array], outputs: Sequence[Array], arena: NDArray[np.uint8]) -> None:
        """As `Executor.call`; the arena is the process's own."""
        sizes = [a.nbytes for a in (*inputs, *outputs)]
        words = np.array([self._names.index(entry), len(inputs), len(outputs), arena.nbytes, *sizes], "<u8")
        with self._lock:
            self._send(entry, [words.tobytes(), *(a.tobytes() for a in inputs)])
            status = int.from_bytes(self._receive(entry, 8), "little", signed=True)
            for array in outputs:
                array[...] = np.frombuffer(self._receive(entry, array.nbytes), array.dtype).reshape(array.shape)
        check_status(entry, status)

    def _send(self, entry: str, parts: Sequence[bytes]) -> None:
        try:
            for part in parts:
                _pipe(self._process.stdin).write(part)
            _pipe(self._process.stdin).flush()
        except BrokenPipeError:
            raise self._died(entry) from None

    def _receive(self, entry: str, size: int) -> bytes:
        data = _pipe(self._process.stdout).read(size)
        if len(data) != size:
            raise self._died(entry)
        return data

    def _died(self, entry: str) -> MachineError:
        code = self._process.wait()
        text = _pipe(self._process.stderr).read().decode(errors="replace").strip()
        return MachineError(f"emulating {entry} stopped: qemu-user ended with status {code}: {text or 'no message'}")


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise MachineError("the emulator has no pipe")
    return stream


def _end(process: subprocess.Popen[bytes]) -> None:
    """Close the pipes (the driver ends at the end of its input) and wait."""
    process.kill()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()
    process.wait()


def _link(folder: Path, obj: bytes, names: Sequence[str], arch: str) -> Path:
    """Compile the driver and link it with the object."""
    source, model, program = folder / "driver.c", folder / "model.o", folder / "driver"
    source.write_text(_DRIVER.format(declarations="".join(f"entry_t {n};\n" for n in names), names=", ".join(names)), encoding="ascii")
    model.write_bytes(obj)
    command = [COMPILER.format(arch=arch), "-std=c11", "-O1", "-static", "-o", str(program), str(source), str(model)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise MachineError(f"{command[0]} failed to link the program for qemu-user: {done.stderr.strip()[-500:]}")
    return program
