"""Programs on a device reached by ssh: here an sshd of the test's own on the loopback address."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ssh_server import Server, free_port, needs_sshd
from toy_objects import INTERFACE, answer, platform, rows, toy

from qcompiler.backends.image import flatten
from qcompiler.backends.remote import COMMAND, Device, RemoteExecutor
from qcompiler.errors import UsageError
from qcompiler.runtime import MachineError, Program

HERE = platform()


def opened(device: Device, features: tuple[str, ...] = (), arch: str = HERE.arch) -> RemoteExecutor:
    image = flatten(toy(arch))
    return RemoteExecutor(device, image.data, image.entries, replace(platform(arch), features=features))


@needs_sshd
def test_programs_run_on_devices_and_are_timed_there(device: Device) -> None:
    executor = opened(device)
    program, x = Program(INTERFACE, executor), rows(5)
    assert np.array_equal(program.run_integer({"x": x})["y"], answer(x))
    latency = executor.latency(lambda: program.run_integer({"x": x[:1]}), 0.001)
    assert latency.calls == len(executor.nanoseconds) >= 7
    assert 0 < latency.low <= latency.median
    assert executor.cpu
    executor.close()


@needs_sshd
def test_a_broken_connection_leaves_nothing(device: Device) -> None:
    executor = opened(device)
    executor._process.kill()
    with pytest.raises(MachineError, match="running .* on '127.0.0.1' failed"):
        Program(INTERFACE, executor).run_integer({"x": rows(1)})


@needs_sshd
def test_devices_of_another_architecture_are_refused(device: Device) -> None:
    foreign = "aarch64" if HERE.arch == "x86_64" else "x86_64"
    with pytest.raises(MachineError, match=f"the program is for linux on {foreign}"):
        opened(device, arch=foreign)


@needs_sshd
def test_devices_without_the_features_are_refused(device: Device) -> None:
    with pytest.raises(MachineError, match="lacks a-feature-that-no-cpu-has"):
        opened(device, ("a-feature-that-no-cpu-has",))


@needs_sshd
def test_a_wrong_key_is_told(device: Device, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COMMAND, server.command("stranger"))
    with pytest.raises(MachineError, match="Permission denied.*check that `ssh 127.0.0.1` works"):
        opened(device)


@needs_sshd
def test_a_device_that_is_away_is_told(device: Device) -> None:
    with pytest.raises(MachineError, match="(?i)connection refused.*check that"):
        opened(Device("127.0.0.1", free_port()))


@needs_sshd
def test_a_device_without_a_place_for_files_is_told(device: Device, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COMMAND, server.command(temporary=server.folder / "nowhere"))
    with pytest.raises(MachineError, match="set TMPDIR on the device"):
        opened(device)


@needs_sshd
def test_a_full_disk_is_told(device: Device, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(tmp_path)], capture_output=True, check=False).returncode != 0:
        pytest.skip("this user may not mount a small disk")
    try:
        monkeypatch.setenv(COMMAND, server.command(temporary=tmp_path))
        with pytest.raises(MachineError, match="is the disk full"):
            opened(device)
        assert not list(tmp_path.iterdir())
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_without_ssh_its_absence_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COMMAND, "no-such-ssh -v")
    with pytest.raises(MachineError, match="needs 'no-such-ssh'"):
        opened(Device("somewhere"))


@pytest.mark.parametrize("text", ["phone", "http://phone", "ssh://", "ssh://phone:x", "ssh://phone/folder", "ssh://-oProxyCommand=x"])
def test_only_ssh_addresses_are_devices(text: str) -> None:
    with pytest.raises(UsageError, match="expected a device as ssh://"):
        Device.parse(text)


def test_addresses_have_users_and_ports() -> None:
    assert Device.parse("ssh://me@phone:2222") == Device("me@phone", 2222)
    assert Device.parse("ssh://phone") == Device("phone")
