"""The artifact on disk: object, static library, flat image, shared library, header and manifest, in one folder.

The folder is replaced as a whole (`atomic`): an earlier artifact stays until the new one is complete.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import qcompiler
from qcompiler.errors import UsageError
from qcompiler.runtime.artifact import IMAGE, LIBRARIES, MANIFEST, Interface, Manifest, Platform, file_checksum, file_digest, read_manifest
from qcompiler.runtime.errors import ArtifactError

from .archive import archive
from .atomic import replaced_folder
from .embed import companions
from .header import header
from .image import Image, flatten
from .link import link_library

HEADER = "model.h"
_OBJECTS = {"windows": ("model.obj", "model.lib")}


class Target(Protocol):
    """What is told of the target: a row of the table, or a `Platform`."""

    @property
    def name(self) -> str: ...
    @property
    def triple(self) -> str: ...
    @property
    def arch(self) -> str: ...
    @property
    def os(self) -> str: ...
    @property
    def features(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Artifact:
    """All that is written: `image` is that of `obj`, or of its ELF twin where `obj` is Mach-O or COFF (None: no image)."""

    obj: bytes
    interface: Interface
    target: Target
    image: Image | None
    report: Any = None
    certificate: Any = None
    extra: Mapping[str, bytes] = field(default_factory=dict)
    """Further files, by name."""

    @classmethod
    def of_elf(cls, obj: bytes, interface: Interface, target: Target) -> Artifact:
        """From an ELF object alone."""
        return cls(obj, interface, target, flatten(obj))


def write_artifact(folder: Path | str, artifact: Artifact, share: bool = True) -> Manifest:
    """Write `artifact` as `folder`; `share`: also link a shared library where a linker is found."""
    place = Path(folder).resolve()
    _check_prefix(artifact.interface.prefix)
    _check_place(place)
    with replaced_folder(place) as staging:
        for name, content in _files(artifact):
            (staging / name).write_bytes(content)
        if share:
            _share(staging, artifact)
        manifest = _manifest(staging, artifact)
        (staging / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def _check_prefix(prefix: str) -> None:
    if not (prefix.isidentifier() and prefix.isascii()):
        raise UsageError(f"expected a C identifier as prefix, found {prefix!r}")


def _check_place(place: Path) -> None:
    """Only an artifact, an empty folder or nothing is replaced: never somebody's own files."""
    if not place.exists():
        return
    if not place.is_dir():
        raise UsageError(f"expected a folder for the artifact, found the file '{place}'; choose another name")
    strangers = {p.name for p in place.iterdir()} - _known_files(place)
    if strangers:
        raise UsageError(f"'{place}' holds {min(strangers)!r}, which is no part of an artifact; choose another folder, or remove it")


def _known_files(place: Path) -> set[str]:
    try:
        return {MANIFEST, *read_manifest(place).files}
    except ArtifactError:
        return set()


def object_names(os: str) -> tuple[str, str]:
    """File names of the object and of the static library."""
    return _OBJECTS.get(os, ("model.o", "model.a"))


def _files(artifact: Artifact) -> Iterator[tuple[str, bytes | bytearray]]:
    interface, target = artifact.interface, artifact.target
    obj, library = object_names(target.os)
    underscore = "_" if target.os == "macos" else ""
    symbols = [f"{underscore}{entry}" for entry in interface.symbols]
    yield obj, artifact.obj
    yield library, archive(obj, artifact.obj, symbols, target.os)
    yield HEADER, header(interface, _platform(target), tool(), (obj, library)).encode("ascii")
    yield from companions(interface, target.triple, target.os, tool(), library)
    if artifact.image is not None:
        yield IMAGE, artifact.image.data
    yield from artifact.extra.items()


def _share(staging: Path, artifact: Artifact) -> None:
    target = _platform(artifact.target)
    if target.os in LIBRARIES:
        link_library(staging / object_names(target.os)[0], staging / LIBRARIES[target.os], target)


def _platform(target: Target) -> Platform:
    return Platform(target.name, target.triple, target.arch, target.os, tuple(target.features))


def tool() -> str:
    """Name and version, as the manifest states them."""
    return f"qcompiler {qcompiler.__version__}"


def _manifest(staging: Path, artifact: Artifact) -> Manifest:
    files = {p.name: {"size": p.stat().st_size, "sha256": file_digest(p), "crc32": file_checksum(p)} for p in sorted(staging.iterdir())}
    image, platform = artifact.image, _platform(artifact.target)
    entries = {} if image is None else {name: image.entries[name] for name in artifact.interface.symbols}
    code_size = 0 if image is None else image.code_size
    return Manifest(artifact.interface, platform, entries, code_size, files, artifact.report, artifact.certificate, tool())
