"""`qcompile lint`: whether a toolchain will take a quantized ONNX model, whoever made it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .options import json_option
from .show import say, show_json, show_table

if TYPE_CHECKING:
    from qcompiler.backends.onnx.lint import Findings

INTEGER_HELP = "operators that would run in float are violations too"


@click.command("lint")
@click.argument("model", metavar="MODEL.onnx")
@click.option("--profile", required=True, metavar="NAME", help="the toolchain; `qcompile targets` lists them")
@click.option("--integer-only", is_flag=True, help=INTEGER_HELP)
@json_option
def command(model: str, profile: str, integer_only: bool, as_json: bool) -> int:
    """Check a Q/DQ model against a profile; exit with 1 where it breaks a rule."""
    from qcompiler.backends.onnx.lint import lint
    from qcompiler.frontend.load import load_model
    from qcompiler.profiles import profile_named

    from .compile import check_model

    check_model(model)
    found = lint(load_model(model), profile_named(profile))
    broken = bool(found.violations) or (integer_only and bool(found.fallbacks))
    if as_json:
        show_json({"model": model, "ok": not broken, **found.as_dict()})
    else:
        show(model, found)
    return int(broken)


def show(model: str, found: Findings) -> None:
    """The findings for people."""
    if found.violations:
        rows = [(v.rule, v.operator, v.node, v.message, v.remedy) for v in found.violations]
        show_table("Violations", ["rule", "operator", "node", "what", "remedy"], rows)
    if found.fallbacks:
        show_table("In float", ["operator", "node", "why"], [(f.operator, f.node, f.reason) for f in found.fallbacks])
    counts = f"{len(found.violations)} violations, {len(found.fallbacks)} of {found.operators} operators would run in float"
    say(f"{model} for {found.profile}: {counts}.")
