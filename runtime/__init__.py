"""Loading and running compiled programs; needs numpy and the standard library only."""

if __name__ != "qcompiler.runtime":
    raise ImportError("import this package as 'qcompiler.runtime': the top-level folder is only its home in the repository")

import os
from pathlib import Path

from .artifact import Interface, Manifest, Platform, Tensor, damaged_files, read_manifest
from .errors import ArtifactError, InputError, MachineError, RuntimeFailure
from .executor import Executor, NativeExecutor, open_native
from .program import Program

__all__ = [
    "ArtifactError",
    "Executor",
    "InputError",
    "Interface",
    "MachineError",
    "Manifest",
    "NativeExecutor",
    "Platform",
    "Program",
    "RuntimeFailure",
    "Tensor",
    "damaged_files",
    "load",
    "read_manifest",
]


def load(path: str | os.PathLike[str], threads: int = 1) -> Program:
    """The program of the artifact in the folder `path`, on this machine; `threads` compute each call."""
    folder, manifest = Path(path), read_manifest(path)
    return Program(manifest.interface, open_native(folder, manifest), threads)
