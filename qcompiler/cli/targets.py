"""`qcompile targets`: what can be compiled for."""

from __future__ import annotations

from typing import Any

import click

from .compile import ONNX_TARGETS, SYSTEMS
from .options import json_option
from .show import say, show_json, show_table


@click.command("targets")
@json_option
def command(as_json: bool) -> None:
    """What can be compiled for."""
    rows = described()
    if as_json:
        show_json({"targets": rows, "systems": SYSTEMS, "profiles": [dict(zip(("name", "title", "activations"), p)) for p in profiles()]})
        return
    show_table("Targets", ["name", "instructions", ">vector", "runs here"], [(r["name"], r["about"], r["vector_bits"], r["runs_here"]) for r in rows])
    show_table("Profiles: onnx-qdq:NAME or onnx-qdq:NAME:TYPE", ["name", "toolchain", "activations"], profiles())
    say(f"`host` is the best that this machine runs. --os is one of {', '.join(SYSTEMS)}.")


def described() -> list[dict[str, Any]]:
    """All targets, those of ONNX last."""
    from qcompiler.backends.llvm.target import TARGETS, host_target

    best = host_target().name
    native = [row(t.name, " ".join(t.features), t.arch, t.vector_bits, t.runs_here, t.name == best) for t in TARGETS.values()]
    return native + [row(name, text) for name, text in ONNX_TARGETS.items()]


def profiles() -> list[tuple[str, str, str]]:
    """(name, title, types of activations) of every profile."""
    from qcompiler.profiles import names, profile_named

    rows = (profile_named(n) for n in names())
    return [(p.name, p.title, " ".join(t.value for t in p.activations.types)) for p in rows]


def row(
    name: str, about: str, arch: str | None = None, vector_bits: int | None = None, runs_here: bool | None = None, host: bool = False
) -> dict[str, Any]:
    """What is told of one target."""
    return {"name": name, "about": about, "arch": arch, "vector_bits": vector_bits, "runs_here": runs_here, "host": host}
