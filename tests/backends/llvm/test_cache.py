"""Machine code kept by digest: the same bytes with and without, and no trouble from bad entries, folders and neighbours."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from integer_graphs import Builder

from qcompiler.backends.llvm.cache import Cache, default_folder, key_of
from qcompiler.backends.llvm.lower import ObjectCode, compile_lengths
from qcompiler.backends.llvm.target import TARGETS
from qcompiler.ir.graph import Graph

HOST = TARGETS["x86-64"]


def network(seed: int = 0, channels: int = 20) -> Graph:
    b = Builder(seed)
    x = b.input(1, 6, 6, 8, zero_point=0)
    return b.graph(b.conv(b.conv(x, channels, (3, 3)), 10))


def compiled(cache: Cache, graph: Graph | None = None, target: str = "x86-64") -> ObjectCode:
    return compile_lengths({"model": graph or network()}, TARGETS[target], cache=cache)


def entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


@pytest.mark.parametrize("target", TARGETS)
def test_the_same_bytes_with_and_without(target: str, tmp_path: Path) -> None:
    plain, cold, warm = (compiled(c, target=target) for c in (Cache(), Cache(tmp_path), Cache(tmp_path)))
    assert plain.object == cold.object == warm.object
    assert warm.assembly == plain.assembly
    assert len(entries(tmp_path)) == 1


def test_a_warm_cache_is_read(tmp_path: Path) -> None:
    (text,) = {compiled(Cache(tmp_path), network(seed))._text for seed in (0, 0)}
    assert Cache(tmp_path).get(key_of(text, HOST), lambda: pytest.fail("made again"))


def test_networks_that_differ_in_weights_alone_share_an_entry(tmp_path: Path) -> None:
    objects = [compiled(Cache(tmp_path), network(seed)).object for seed in (1, 2)]
    assert objects == [compiled(Cache(), network(seed)).object for seed in (1, 2)]
    assert objects[0] != objects[1]


def test_keys_tell_targets_systems_and_texts_apart() -> None:
    rows = [*TARGETS.values(), HOST.for_os("macos"), HOST.generic()]
    assert len({key_of(text, t) for t in rows for text in ("a", "b")}) == 2 * len(rows)


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:40], lambda b: b"", lambda b: b[:50] + bytes([b[50] ^ 1]) + b[51:]])
def test_damaged_entries_are_made_again(damage, tmp_path: Path) -> None:
    expected = compiled(Cache(tmp_path)).object
    (entry,) = entries(tmp_path)
    whole = entry.read_bytes()
    entry.write_bytes(damage(whole))
    assert compiled(Cache(tmp_path)).object == expected
    assert entry.read_bytes() == whole


def test_folders_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    expected = compiled(Cache()).object
    assert compiled(Cache(tmp_path / "file")).object == expected

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert compiled(Cache(tmp_path / "full")).object == expected
    assert entries(tmp_path / "full") == []


def test_writers_at_the_same_time(tmp_path: Path) -> None:
    cache, got = Cache(tmp_path), list[bytes]()
    start = threading.Barrier(8)

    def work(n: int) -> None:
        start.wait()
        got.extend(cache.get(f"{k}", lambda k=k: bytes([k]) * 100_000) for k in (n % 2, 1 - n % 2))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(got) == [bytes([k]) * 100_000 for k in (0, 1) for _ in range(8)]
    assert [e.name for e in entries(tmp_path)] == ["0.o", "1.o"]


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=300)
    for n, key in enumerate("abc"):
        cache.get(key, lambda: bytes(60))
        os.utime(tmp_path / f"{key}.o", (n, n))
    cache.get("a", lambda: pytest.fail("made again"))
    cache.get("d", lambda: bytes(60))
    assert [e.name for e in entries(tmp_path)] == ["a.o", "c.o", "d.o"]


def test_the_text_does_not_depend_on_the_process() -> None:
    """Sets and hashes are ordered differently in each."""
    folders = [str(Path(__file__).parents[2] / "helpers"), str(Path(__file__).parent)]
    program = f"import sys; sys.path[:0] = {folders!r}; from test_cache import *; print(key_of(compiled(Cache())._text, HOST))"
    environments = ({**os.environ, "PYTHONHASHSEED": seed} for seed in "12")
    keys = {subprocess.run([sys.executable, "-c", program], env=e, check=True, capture_output=True).stdout for e in environments}
    assert len(keys) == 1


def test_the_folder_is_the_users_or_the_one_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QC_CACHE", str(tmp_path))
    assert default_folder() == tmp_path
    monkeypatch.setenv("QC_CACHE", "")
    assert default_folder() is None
    monkeypatch.delenv("QC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    assert default_folder() == tmp_path / "qcompiler" / "objects"
