"""Running programs on another machine, over the system's ssh: nothing is installed there, and nothing is left behind.

One connection does it all. A short script of the POSIX shell tells what the machine is, keeps the executable (`runner`) in a folder of its
own, runs it with the connection as its standard input and output, and removes the folder however it ends. Nothing is sent before the script
has asked for it, so no program of the script can read what is meant for the next.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from qcompiler.errors import UsageError
from qcompiler.runtime import Program, read_manifest
from qcompiler.runtime.artifact import Interface
from qcompiler.runtime.bench import AT_LEAST, WARM_UP, Latency
from qcompiler.runtime.cpu import arch_named, lacking
from qcompiler.runtime.errors import MachineError
from qcompiler.runtime.executor import open_image

from .image import Image
from .package import Target as Described
from .process import ProcessExecutor, ended, pipe
from .runner import executable

COMMAND = "QCOMPILER_SSH"
"""Environment variable: the command used for `ssh`, with options (as GIT_SSH_COMMAND is for git)."""
_PATIENCE = 10  # seconds to wait for a connection
_MOST = 100_000  # repetitions of one call

_SCRIPT = """
uname -s; uname -m
grep -m1 -E '^(flags|Features)' /proc/cpuinfo || echo
grep -m1 -E '^model name' /proc/cpuinfo || echo
d=$(mktemp -d "${{TMPDIR:-/tmp}}/qcompiler.XXXXXX") || exit 71
trap 'rm -rf "$d"' EXIT
trap 'exit 74' HUP INT TERM
echo send
head -c {size} > "$d/program" || exit 72
[ "$(wc -c < "$d/program")" -eq {size} ] || exit 72
chmod 700 "$d/program" || exit 72
echo run
"$d/program"
"""
_REASONS = {
    71: "no folder could be made there for the program; set TMPDIR on the device to one that can be written",
    72: "the program could not be stored there: is the disk full? set TMPDIR on the device to a folder with more room",
    126: "the program may not be executed there: is its folder mounted noexec? set TMPDIR on the device to another",
    127: "the program was not found or could not be loaded there",
    132: "the device's CPU met an instruction that it lacks; compile for another target",
    255: "check that `ssh {host}` works without a question (keys, known hosts, address)",
}


@dataclass(frozen=True)
class Device:
    """A machine that ssh reaches: `host` may have a user in front, port None is ssh's own choice."""

    host: str
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> Device:
        """Of ssh://[user@]host[:port]; UsageError otherwise."""
        parts = urlsplit(text)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme != "ssh" or not parts.hostname or parts.path.strip("/") or port == -1 or parts.netloc.startswith("-"):
            raise UsageError(f"expected a device as ssh://user@host or ssh://user@host:port, found {text!r}")
        user = f"{parts.username}@" if parts.username else ""
        return cls(f"{user}{parts.hostname}", port)

    @property
    def command(self) -> list[str]:
        """The command that runs what follows it on the device; it never asks."""
        port = [] if self.port is None else ["-p", str(self.port)]
        ssh = shlex.split(os.environ.get(COMMAND, "ssh"))
        return [*ssh, "-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={_PATIENCE}", *port, "--", self.host]


class Unfit(MachineError):
    """The device answers, but is of another kind than the program was compiled for."""


class RemoteExecutor(ProcessExecutor):
    """A program on a device; `close` ends it and removes it there. `cpu` is what the device calls its processor."""

    def __init__(self, device: Device, image: bytes | bytearray, entries: Mapping[str, int], target: Described) -> None:
        if target.os not in ("linux", "android"):
            raise MachineError(f"expected a program for linux or android, found one for {target.os}: what is run over ssh makes Linux's system calls")
        self.device = device
        content = executable(image, target.arch, entries, names := tuple(entries))
        super().__init__(_started(device, _SCRIPT.format(size=len(content))), names, self._failed)
        try:
            self.cpu = self._facts(target)
            self._store(content)
        except BaseException:
            self.close()
            raise

    def latency(self, run: Callable[[], object], seconds: float) -> Latency:
        """Latency on the device of the call that `run` makes, repeated there for about `seconds`."""
        self.repetitions = WARM_UP
        run()
        self.repetitions = max(AT_LEAST, min(_MOST, int(seconds * 1e9 / max(1, min(self.nanoseconds)))))
        try:
            run()
        finally:
            self.repetitions = 1
        return Latency.of(self.nanoseconds)

    def _facts(self, target: Described) -> str:
        """Read what the machine is; Unfit where it cannot run the program."""
        system, machine, flags, name = (self._line("connecting") for _ in range(4))
        if system != "Linux" or arch_named(machine) != target.arch:
            raise Unfit(f"'{self.device.host}' is {system} on {machine}, but the program is for linux on {target.arch}; compile for its target")
        known = flags.partition(":")[2].split()
        if known and (missing := lacking(target.features, target.arch, known)):
            raise Unfit(f"the CPU of '{self.device.host}' lacks {', '.join(missing)}, which {target.name} needs; compile for another target")
        return name.partition(":")[2].strip() or machine

    def _store(self, content: bytes) -> None:
        self._expect("send", "connecting")
        try:
            pipe(self._process.stdin).write(content)
            pipe(self._process.stdin).flush()
        except BrokenPipeError:
            raise self._failed("copying the program", *ended(self._process)) from None
        self._expect("run", "copying the program")

    def _line(self, what: str) -> str:
        raw = pipe(self._process.stdout).readline()
        if not raw.endswith(b"\n"):
            raise self._failed(what, *ended(self._process))
        return raw.decode(errors="replace").strip()

    def _expect(self, word: str, what: str) -> None:
        if (found := self._line(what)) != word:
            raise MachineError(
                f"{what} to '{self.device.host}': expected its shell to answer {word!r}, found {found[:80]!r}; does a login script print?"
            )

    def _failed(self, what: str, status: int, text: str) -> MachineError:
        host = self.device.host
        why = _REASONS.get(status, f"it ended with status {status}").format(host=host)
        said = " ".join(text.split())
        return MachineError(f"{what} on '{host}' failed: {said + '; ' if said else ''}{why}")


def remote(interface: Interface, image: Image, target: Described, device: Device) -> tuple[Program, RemoteExecutor]:
    """A program in memory on `device`, and what runs it there (to be closed)."""
    executor = RemoteExecutor(device, image.data, image.entries, target)
    return Program(interface, executor), executor


def open_remote(folder: str | os.PathLike[str], device: Device) -> tuple[Program, RemoteExecutor]:
    """As `remote`, of an artifact."""
    manifest = read_manifest(folder)
    executor = RemoteExecutor(device, bytes(open_image(Path(folder), manifest).data), manifest.entries, manifest.target)
    return Program(manifest.interface, executor), executor


def _started(device: Device, script: str) -> subprocess.Popen[bytes]:
    command: Sequence[str] = [*device.command, f"exec sh -c {shlex.quote(script)}"]
    try:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except FileNotFoundError:
        raise MachineError(
            f"running on '{device.host}' needs {command[0]!r}, which is not installed; install OpenSSH's client, or set {COMMAND}"
        ) from None
