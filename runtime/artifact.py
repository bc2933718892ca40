"""The artifact: a folder that holds a compiled program, and manifest.json, which describes it.

    {"format": 1, "tool": "qcompiler 0.1.0", "prefix": "model",
     "target": {"name": "arm64-dotprod", "triple": "aarch64-unknown-linux-gnu", "arch": "aarch64", "os": "linux", "features": ["neon", "dotprod"]},
     "arena_size": bytes, "weights_size": bytes, "code_size": bytes,
     "inputs": [{"name", "shape", "dtype": "float32", "storage": "int8", "scale": 0.1 or null, "zero_point": 3, "axis": null,
                 "low": null or the least integer that may be given, "high": the greatest}], "outputs": the same,
     "entries": {"model_run": offset in model.img, "model_run_f32": offset},
     "files": {"model.o": {"size": bytes, "sha256": hex, "crc32": number}, ...},
     "report": what the compiler says of the layers, "certificate": what was proven of the code}

`features` are LLVM's names of what the CPU must have. A network that was compiled for several shapes has "lengths" besides: a list of
{"prefix", "inputs", "outputs"}, of which the first is the one described above.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import ArtifactError

FORMAT = 1
MANIFEST = "manifest.json"
IMAGE = "model.img"
OUT_OF_RANGE = 2
"""Status of an entry, plus 256 times the index of the input, where an element is outside of [low, high]."""
LIBRARIES = {"linux": "model.so", "android": "model.so", "macos": "model.dylib", "windows": "model.dll"}


@dataclass(frozen=True)
class Tensor:
    """An input or output: `run` takes it as `dtype`, `run_integer` as `storage`; real = scale * (integer - zero_point).

    Inputs whose channels have steps of their own have a tuple of scales and zero points along `axis`; these may lie between two integers.
    Inputs with `low` and `high` (indices, masks) are refused by the program where an element is outside of them."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    storage: str = "int8"
    scale: float | tuple[float, ...] | None = None
    zero_point: int | tuple[float, ...] = 0
    low: int | None = None
    high: int | None = None
    axis: int | None = None

    @property
    def bounded(self) -> bool:
        """Whether the program refuses some of the numbers that the type could hold."""
        return self.low is not None

    @property
    def interval(self) -> tuple[int, int]:
        """The least and the greatest integer that may be given."""
        bounds = np.iinfo(self.storage)
        return (bounds.min if self.low is None else self.low), (bounds.max if self.high is None else self.high)

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def scales(self) -> tuple[float, ...]:
        """One scale, or one per index of `axis`."""
        return self.scale if isinstance(self.scale, tuple) else (1.0 if self.scale is None else self.scale,)

    @property
    def offsets(self) -> tuple[tuple[float, ...], int]:
        """What is added before rounding, like `scales`, and after: integer = round(real / scale + before) + after."""
        zeros = self.zero_point if isinstance(self.zero_point, tuple) else (self.zero_point,)
        whole = len(set(zeros)) == 1 and float(zeros[0]).is_integer()
        return ((0.0,) * len(zeros), int(zeros[0])) if whole else (zeros, 0)

    def quantize(self, real: ArrayLike) -> NDArray[Any]:
        """The integers that `run` makes of real numbers, ties to even, saturated: what `run_integer` takes."""
        x = np.asarray(real, np.float32)
        before, after = self.offsets
        shape = [1] * len(self.shape)
        if self.axis is not None:
            shape[self.axis] = -1
        scales, shifts = (np.array(a, np.float32).reshape(shape) for a in (self.scales, before))
        bounds = np.iinfo(self.storage)
        return np.clip(np.rint(x / scales + shifts) + np.float32(after), bounds.min, bounds.max).astype(self.storage)

    def nbytes(self, integer: bool) -> int:
        """Bytes of the dense array, as `run_integer` (or else `run`) takes it."""
        return self.size * np.dtype(self.storage if integer else self.dtype).itemsize


@dataclass(frozen=True)
class Interface:
    """How a program is called: what goes in, what comes out, how much working memory it wants."""

    prefix: str
    arena_size: int
    weights_size: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    parallel: bool = False
    """Whether there are entries for several threads too."""
    lengths: tuple[Interface, ...] = ()
    """The forms of a network compiled for several shapes, each with entries of its own; the first is that of `inputs` and `outputs`."""
    family: str = ""
    """The prefix of what such forms share, where this is one of them."""
    divided: bool = True
    """Whether the entries for several threads divide anything: a network of short layers is faster without."""

    @property
    def forms(self) -> tuple[Interface, ...]:
        """Everything that can be called: of one form, itself."""
        return self.lengths or (self,)

    def entry(self, integer: bool, parallel: bool = False) -> str:
        """Name of the C function, of the first form where there are several."""
        return self.forms[0].prefix + ("_run" if integer else "_run_f32") + ("_parallel" if parallel else "")

    @property
    def entries(self) -> tuple[str, ...]:
        """Both C functions for one thread, of each form."""
        return tuple(f.entry(integer) for f in self.forms for integer in (True, False))

    @property
    def pool(self) -> tuple[str, str, str]:
        """The functions of the pool: `parallel_for`, what workers run, and what sets its state."""
        shared = self.family or self.prefix
        return f"{shared}_pool_for", f"{shared}_pool_worker", f"{shared}_pool_set"

    @property
    def symbols(self) -> tuple[str, ...]:
        """All C functions."""
        if not self.parallel:
            return self.entries
        return (*self.entries, *(f.entry(integer, True) for f in self.forms for integer in (True, False)), *self.pool)


def joined(prefix: str, forms: Sequence[Interface], weights_size: int) -> Interface:
    """The interface of a program of these forms, the first of them before all others: one arena and one set of constants serves all."""
    arena = max(f.arena_size for f in forms)
    family = "" if len(forms) == 1 else prefix
    each = tuple(replace(f, arena_size=arena, weights_size=weights_size, family=family) for f in forms)
    return each[0] if len(each) == 1 else replace(each[0], prefix=prefix, lengths=each, family="")


@dataclass(frozen=True)
class Platform:
    """What a program was compiled for."""

    name: str
    triple: str
    arch: str
    os: str
    features: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json."""

    interface: Interface
    target: Platform
    entries: Mapping[str, int]
    code_size: int
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    report: Any = None
    certificate: Any = None
    tool: str = ""

    def to_json(self) -> str:
        """As written to disk."""
        flat = {"format": FORMAT, "tool": self.tool, "target": asdict(self.target), **_described(self.interface)}
        rest = {"code_size": self.code_size, "entries": dict(self.entries), "files": dict(self.files)}
        return json.dumps({**flat, **rest, "report": self.report, "certificate": self.certificate}, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """The inverse; ArtifactError says what is missing or of another kind."""
        try:
            return _manifest(json.loads(text))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as problem:
            raise ArtifactError(f"{MANIFEST} is damaged: {type(problem).__name__} {problem}") from problem


def _described(interface: Interface) -> dict[str, Any]:
    """The interface in the manifest."""
    facts = asdict(replace(interface, lengths=()))
    for key in ("lengths", "family"):
        del facts[key]
    lengths = [
        {"prefix": f.prefix, "divided": f.divided, **{key: [asdict(t) for t in getattr(f, key)] for key in ("inputs", "outputs")}}
        for f in interface.lengths
    ]
    return facts | ({"lengths": lengths} if lengths else {})


def _manifest(data: dict[str, Any]) -> Manifest:
    if data["format"] != FORMAT:
        found = f"format {data['format']}, made by {data.get('tool')}"
        raise ArtifactError(f"expected an artifact of format {FORMAT}, found {found}; compile the model again")
    sizes = int(data["arena_size"]), int(data["weights_size"])
    forms = [_form(each, sizes, bool(data.get("parallel", False))) for each in data.get("lengths", [data])]
    interface = joined(str(data["prefix"]), forms, sizes[1])
    target = Platform(**{**data["target"], "features": tuple(data["target"]["features"])})
    entries = {str(name): int(offset) for name, offset in data["entries"].items()}
    return Manifest(
        interface, target, entries, int(data["code_size"]), dict(data["files"]), data.get("report"), data.get("certificate"), str(data["tool"])
    )


def _form(data: dict[str, Any], sizes: tuple[int, int], parallel: bool) -> Interface:
    inputs, outputs = (tuple(_tensor(t) for t in data[key]) for key in ("inputs", "outputs"))
    return Interface(str(data["prefix"]), *sizes, inputs, outputs, parallel, divided=bool(data.get("divided", True)))


def _tensor(data: dict[str, Any]) -> Tensor:
    listed = {key: tuple(data[key]) for key in ("scale", "zero_point") if isinstance(data.get(key), list)}
    tensor = Tensor(**{**data, **listed, "shape": tuple(int(d) for d in data["shape"])})
    if (tensor.low is None) != (tensor.high is None) or not all(isinstance(b, int | None) for b in (tensor.low, tensor.high)):
        raise ValueError(f"expected two integers or none, found low {tensor.low} and high {tensor.high}")
    if min(tensor.shape, default=1) < 1:
        raise ValueError(f"expected positive dimensions, found {tensor.shape}")
    np.dtype(tensor.dtype), np.dtype(tensor.storage)  # TypeError where there is none
    return tensor


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """The manifest of the artifact in `folder`."""
    path = Path(folder) / MANIFEST
    try:
        return Manifest.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as problem:
        why = getattr(problem, "strerror", None) or problem
        raise ArtifactError(f"expected an artifact in '{folder}', but its {MANIFEST} cannot be read ({why}); make one with qcompile") from problem


def digest(data: bytes | memoryview) -> str:
    """SHA-256, as in the manifest."""
    return hashlib.sha256(data).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in bounded memory."""
    total, block = hashlib.sha256(), memoryview(bytearray(1 << 17))  # stays in cache
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            total.update(block[:count])
    return total.hexdigest()


def checksum(data: bytes | memoryview) -> int:
    """CRC-32, as in the manifest: finds damage as SHA-256 does, in half of the time. Whoever changes files on purpose can change the manifest too."""
    return zlib.crc32(data)


def file_checksum(path: Path) -> int:
    """CRC-32 of a file, in bounded memory."""
    total, block = 0, memoryview(bytearray(1 << 17))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            total = zlib.crc32(block[:count], total)
    return total


def damaged_files(folder: str | os.PathLike[str]) -> dict[str, str]:
    """File name -> what is wrong with it, for every file of the artifact that is not as it was written."""
    found = {}
    for name, expected in read_manifest(folder).files.items():
        path = Path(folder) / name
        if not path.is_file():
            found[name] = "missing"
        elif (actual := file_digest(path)) != expected["sha256"]:
            found[name] = f"expected sha256 {expected['sha256']}, found {actual}"
    return found
