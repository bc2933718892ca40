"""The wheel and the source archive hold the tree's files, all of them and nothing else; both are built without a network."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath
from shutil import copytree, ignore_patterns

import pytest

ROOT = Path(__file__).parents[1]
LINKED = ("passes", "backends", "runtime")


def files_of_the_package() -> dict[str, bytes]:
    """Installed name -> contents. Linked folders are walked by their real names: rglob does not follow links on every Python."""
    own = [p for p in (ROOT / "qcompiler").rglob("*") if p.relative_to(ROOT / "qcompiler").parts[0] not in LINKED]
    linked = [p for folder in LINKED for p in (ROOT / folder).rglob("*")]
    wanted = [p for p in own + linked if p.is_file() and "__pycache__" not in p.parts]
    return {installed_name(p): p.read_bytes() for p in wanted}


def installed_name(path: Path) -> str:
    relative = path.relative_to(ROOT).as_posix()
    return relative if relative.startswith("qcompiler/") else f"qcompiler/{relative}"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source archive, built from a copy so that nothing is left in the tree."""
    folder = tmp_path_factory.mktemp("packaging")
    tree = folder / "tree"
    skip = ignore_patterns(".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis")
    copytree(ROOT, tree, symlinks=True, ignore=skip)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "dist"


def test_links_are_relative_links() -> None:
    for name in LINKED:
        link = ROOT / "qcompiler" / name
        assert link.is_symlink()
        assert link.readlink().as_posix() == f"../{name}"


def test_wheel_holds_the_tree(built: Path) -> None:
    """The wheel is built from the source archive, so this holds for `pip install qcompiler-*.tar.gz` too."""
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as z:
        found = {n: z.read(n) for n in z.namelist() if ".dist-info/" not in n}
    expected = files_of_the_package()
    assert sorted(found) == sorted(expected)
    assert found == expected


def test_source_archive_holds_the_tree(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as t:
        names = {PurePosixPath(*PurePosixPath(m.name).parts[1:]).as_posix(): m for m in t.getmembers()}
        package = {n: t.extractfile(m).read() for n, m in names.items() if n.startswith("qcompiler/") and m.isfile()}  # type: ignore[union-attr]
    assert package == files_of_the_package()
    assert {"LICENSE", "README.md", "pyproject.toml"} <= names.keys()


def test_wheel_declares_command_and_licence(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as z:
        text = {PurePosixPath(n).name: z.read(n).decode() for n in z.namelist() if ".dist-info/" in n}
    assert "qcompile = qcompiler.cli:main" in text["entry_points.txt"]
    assert "License-Expression: Apache-2.0" in text["METADATA"]
    assert "Apache License" in text["LICENSE"]


@pytest.mark.parametrize("name", LINKED)
def test_bare_imports_are_refused(name: str) -> None:
    done = subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert f"ImportError: import this package as 'qcompiler.{name}'" in done.stderr
    subprocess.run([sys.executable, "-c", f"import qcompiler.{name}"], check=True, cwd=ROOT)
