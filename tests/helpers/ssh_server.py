"""An sshd of the tests' own on the loopback address: a device that has keys, a folder for temporary files, and may refuse."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shutil import which

import pytest

from qcompiler.backends.remote import COMMAND, Device

SSHD = which("sshd") or which("/usr/sbin/sshd")
needs_sshd = pytest.mark.skipif(SSHD is None or which("ssh") is None or sys.platform != "linux", reason="not installed: sshd and ssh")


@dataclass(frozen=True)
class Server:
    """Where sshd listens, the folder of its keys, and the folder in which devices keep what is temporary."""

    port: int
    folder: Path
    temporary: Path

    @property
    def device(self) -> Device:
        return Device("127.0.0.1", self.port)

    def command(self, key: str = "user", temporary: Path | None = None) -> str:
        """An ssh that knows this server."""
        options = {"IdentityFile": self.folder / key, "IdentitiesOnly": "yes", "StrictHostKeyChecking": "no", "UserKnownHostsFile": "/dev/null"}
        options |= {"LogLevel": "ERROR", "SetEnv": f"TMPDIR={temporary or self.temporary}"}
        return "ssh -F /dev/null " + " ".join(f"-o {name}={value}" for name, value in options.items())


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder, port = tmp_path_factory.mktemp("ssh"), free_port()
    for name in ("host", "user", "stranger"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    (folder / "known").write_text((folder / "user.pub").read_text())
    (folder / "tmp").mkdir()
    lines = [f"Port {port}", "ListenAddress 127.0.0.1", f"HostKey {folder / 'host'}", f"AuthorizedKeysFile {folder / 'known'}", "UsePAM no"]
    lines += [
        "StrictModes no",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "PermitRootLogin yes",
        "AcceptEnv TMPDIR",
        "PidFile none",
    ]
    (folder / "config").write_text("\n".join(lines) + "\n")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    process = subprocess.Popen([str(SSHD), "-D", "-e", "-f", str(folder / "config")], stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 10
        while not listens(port):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.skip("sshd does not start here")
            time.sleep(0.02)
        yield Server(port, folder, folder / "tmp")
    finally:
        process.terminate()
        process.communicate()


@pytest.fixture
def device(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """The server as a device, on which nothing may be left when the test is over."""
    monkeypatch.setenv(COMMAND, server.command())
    yield server.device
    deadline = time.monotonic() + 5
    while any(server.temporary.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not list(server.temporary.iterdir())
