"""Running foreign programs under qemu-user (Debian: `apt install qemu-user`), as an executable that needs no linker (`runner`)."""

from __future__ import annotations

import subprocess
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from shutil import rmtree, which

from qcompiler.runtime.errors import MachineError

from .process import ProcessExecutor
from .runner import executable

EMULATOR = "qemu-{arch}"


def missing_tools(arch: str) -> list[str]:
    """Programs that running `arch` needs and that are not installed."""
    return [tool for tool in (EMULATOR.format(arch=arch),) if which(tool) is None]


class QemuExecutor(ProcessExecutor):
    """Runs an image in a process of qemu-user; calls take turns."""

    def __init__(self, image: bytes | bytearray, entries: Mapping[str, int], arch: str) -> None:
        if missing := missing_tools(arch):
            raise MachineError(f"running {arch} code with these CPU features needs {' and '.join(missing)}; install it, or choose another target")
        folder = Path(tempfile.mkdtemp(prefix="qcompiler-qemu-"))
        program = folder / "program"
        program.write_bytes(executable(image, arch, entries, names := tuple(entries)))
        program.chmod(0o700)
        command = [EMULATOR.format(arch=arch), "-cpu", "max", str(program)]
        super().__init__(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE), names, _failure)
        weakref.finalize(self, rmtree, folder, ignore_errors=True)


def _failure(what: str, status: int, text: str) -> MachineError:
    return MachineError(f"{what} stopped: qemu-user ended with status {status}: {text or 'no message'}")
