"""A wheel that holds one compiled program and what runs it: `pip install` it where there is no compiler, only numpy.

    <package>/__init__.py        load() and program(), which is loaded once
    <package>/_runtime/          the runtime, vendored: the names are the package's own, so that several such wheels live side by side
    <package>/program/           manifest.json, the shared library and the flat image

A wheel is a zip archive with METADATA, WHEEL and RECORD (PEP 427). Its tag says the system and the architecture, since the program is
called through ctypes and depends on no version of Python. Dates are fixed: the same program gives the same bytes.
"""

from __future__ import annotations

import json
import re
import zipfile
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from hashlib import sha256
from io import BytesIO
from pathlib import Path

from qcompiler import runtime
from qcompiler.errors import UsageError
from qcompiler.runtime.artifact import IMAGE, LIBRARIES, MANIFEST, Manifest, Platform, damaged_files, read_manifest

_INIT = '''\
"""{summary}"""

from functools import cache
from pathlib import Path

from ._runtime import Program, read_manifest
from ._runtime import load as _load

__all__ = ["Program", "load", "program"]
__version__ = "{version}"


def load(threads: int = 1) -> Program:
    """A program of its own; `threads` compute each call."""
    return _load(Path(__file__).parent / "program", threads)


@cache
def program() -> Program:
    """The program, loaded when it is first asked for."""
    return load()
'''

_METADATA = """\
Metadata-Version: 2.1
Name: {name}
Version: {version}
Summary: {summary}
Requires-Python: >=3.10
Requires-Dist: numpy
"""

_WHEEL = "Wheel-Version: 1.0\nGenerator: {tool}\nRoot-Is-Purelib: false\n{tags}"
_TAGS = {
    ("linux", "x86_64"): ("manylinux2014_x86_64", "musllinux_1_1_x86_64"),
    ("linux", "aarch64"): ("manylinux2014_aarch64", "musllinux_1_1_aarch64"),
    ("macos", "x86_64"): ("macosx_11_0_x86_64",),
    ("macos", "aarch64"): ("macosx_11_0_arm64",),
    ("windows", "x86_64"): ("win_amd64",),
    ("windows", "aarch64"): ("win_arm64",),
    ("android", "x86_64"): ("android_21_x86_64",),
    ("android", "aarch64"): ("android_21_arm64_v8a",),
}
"""The program's library needs no libc, so that any Linux will do."""
_GUARD = re.compile(r'\nif __name__ != "qcompiler\.runtime":\n    raise ImportError\([^\n]*\)\n')
_DATE = (1980, 1, 1, 0, 0, 0)
_VERSION = re.compile(r"\d+(\.\d+)*((a|b|rc)\d+)?(\.post\d+)?(\.dev\d+)?")


def write_wheel(artifact: Path, folder: Path, name: str | None = None, version: str = "1.0") -> Path:
    """Make a wheel of the artifact in `folder`; `name` is that of the package. UsageError where it is not whole, or cannot run from a wheel."""
    manifest = read_manifest(artifact)
    package = name or manifest.interface.prefix
    _check(artifact, manifest, package, version)
    tags = _TAGS[manifest.target.os, manifest.target.arch]
    path = folder / f"{package}-{version}-py3-none-{'.'.join(tags)}.whl"
    content = _archive(dict(_files(artifact, manifest, package, version, tags)), f"{package}-{version}.dist-info/RECORD")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def _check(artifact: Path, manifest: Manifest, package: str, version: str) -> None:
    target = manifest.target
    if not (package.isidentifier() and package.isascii()):
        raise UsageError(f"expected a name that Python can import, found {package!r}; choose one with --name")
    if not _VERSION.fullmatch(version):
        raise UsageError(f"expected a version such as 1.0 or 2.1rc1, found {version!r}")
    if (target.os, target.arch) not in _TAGS:
        raise UsageError(f"there is no wheel for {target.arch} on {target.os}; expected one of {', '.join(f'{a} on {o}' for o, a in _TAGS)}")
    if not _program_files(manifest):
        raise UsageError(f"'{artifact}' has no shared library and no image: compile it where a linker is found, or for linux")
    if damaged := damaged_files(artifact):
        name, why = next(iter(damaged.items()))
        raise UsageError(f"{name} of '{artifact}' is damaged ({why}); compile the model again")


def _program_files(manifest: Manifest) -> list[str]:
    """What running needs: the shared library, the image, or both."""
    return [n for n in (LIBRARIES.get(manifest.target.os, ""), IMAGE) if n in manifest.files]


def _files(artifact: Path, manifest: Manifest, package: str, version: str, tags: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """(path in the wheel, content) of everything but RECORD."""
    summary = _summary(manifest.target, package)
    yield f"{package}/__init__.py", _INIT.format(summary=summary, version=version).encode()
    yield f"{package}/py.typed", b""
    for name, content in runtime_files():
        yield f"{package}/_runtime/{name}", content
    for name in _program_files(manifest):
        yield f"{package}/program/{name}", (artifact / name).read_bytes()
    yield f"{package}/program/{MANIFEST}", _reduced(artifact, manifest).encode()
    info = f"{package}-{version}.dist-info"
    yield f"{info}/METADATA", _METADATA.format(name=package, version=version, summary=summary).encode()
    yield f"{info}/WHEEL", _WHEEL.format(tool=manifest.tool, tags="".join(f"Tag: py3-none-{tag}\n" for tag in tags)).encode()


def _summary(target: Platform, package: str) -> str:
    return f"The network '{package}' as an integer-only program for {target.name} ({target.os})"


def runtime_files() -> Iterator[tuple[str, bytes]]:
    """The modules of the runtime; it imports nothing but itself, numpy and the standard library, and may go by any name."""
    for path in sorted(Path(runtime.__file__).parent.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        yield path.name, (_GUARD.sub("\n", text) if path.name == "__init__.py" else text).encode()


def _reduced(artifact: Path, manifest: Manifest) -> str:
    """The manifest of the files that are there, without the report, which names layers and the source."""
    data = json.loads((artifact / MANIFEST).read_text(encoding="utf-8"))
    kept = {name: facts for name, facts in data["files"].items() if name in _program_files(manifest)}
    return json.dumps({**data, "files": kept, "report": None}, indent=1) + "\n"


def _archive(files: dict[str, bytes], record: str) -> bytes:
    """The zip, RECORD last."""
    lines = [f"{name},sha256={urlsafe_b64encode(sha256(data).digest()).rstrip(b'=').decode()},{len(data)}\n" for name, data in files.items()]
    whole = {**files, record: "".join([*lines, f"{record},,\n"]).encode()}
    memory = BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in whole.items():
            entry = zipfile.ZipInfo(name, _DATE)
            entry.external_attr, entry.compress_type = 0o100644 << 16, zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    return memory.getvalue()
