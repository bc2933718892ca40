"""The targets onnx-qdq:PROFILE and onnx-qdq:PROFILE:TYPE: quantized ONNX as a toolchain asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qcompiler.errors import UsageError

from .data import Dataset
from .show import phases

if TYPE_CHECKING:
    from qcompiler.passes.pipeline import Options

PLAIN_PRECISION = "w8a8"


@dataclass(frozen=True)
class ProfileTarget:
    """A profile by name, and the type of activations if not its first."""

    name: str
    stored: str | None = None


@dataclass(frozen=True)
class ExportedModel:
    """The bytes of an ONNX file, and what is worth telling about it."""

    content: bytes
    facts: Mapping[str, Any]


def profile_of(target: str, scales: str, precision: str) -> ProfileTarget | None:
    """The profile that a target names, if it names one. UsageError where it is unknown, or options contradict it."""
    base, _, rest = target.partition(":")
    if not rest or base != "onnx-qdq":
        if ":" in target:
            raise UsageError(f"expected a target such as onnx-qdq:qnn, found '{target}'; only onnx-qdq has profiles, `qcompile targets` lists them")
        return None
    from qcompiler.profiles import profile_named

    name, _, stored = rest.partition(":")
    profile_named(name).stored(stored or None)
    if scales != "any" or precision != PLAIN_PRECISION:
        raise UsageError(f"the target {target} says itself which scales and widths there are; leave out --scales and --precision")
    return ProfileTarget(name, stored or None)


def exported_model(network: Any, profile: ProfileTarget, data: Dataset | None, shapes: Any, options: Options, quiet: bool) -> ExportedModel:
    """The network in the form of the profile, and what its linter says of it."""
    from qcompiler.api import SYNTHETIC_SAMPLES
    from qcompiler.backends.onnx.lint import lint
    from qcompiler.exchange import export
    from qcompiler.profiles import profile_named

    total = SYNTHETIC_SAMPLES if data is None else data.count
    with phases("calibrating", total, quiet) as tell:
        model = export(
            network,
            profile.name,
            data,
            stored=profile.stored,
            shapes=shapes,
            options=options,
            progress=lambda done: tell("calibrating", done, total or 0),
        )
    found, content = lint(model, profile_named(profile.name)), model.SerializeToString()
    facts = {"size": len(content), "operators": found.operators, "violations": len(found.violations), "fallbacks": len(found.fallbacks)}
    return ExportedModel(content, facts)


def findings_told(place: str, facts: Mapping[str, Any]) -> str:
    """The outcome in a sentence."""
    if "violations" not in facts:
        return "It runs in onnxruntime and in DSP toolchains."
    _, name, *_ = facts["target"].split(":")
    found = f"{facts['violations']} violations, {facts['fallbacks']} of {facts['operators']} operators in float"
    return f"{found}; details: qcompile lint {place} --profile {name}"
