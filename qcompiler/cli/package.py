"""`qcompile package`: a compiled program in the form in which applications install it."""

from __future__ import annotations

from pathlib import Path

import click

from .artifact import open_manifest
from .options import json_option
from .show import say, show_json, size


@click.command("package")
@click.argument("artifact", metavar="ARTIFACT")
@click.option("--wheel", is_flag=True, required=True, help="a Python wheel with the program and its runtime, and without the compiler")
@click.option("--name", help="name of the Python package [default: the program's prefix]")
@click.option("--version", default="1.0", show_default=True, help="version of the wheel")
@click.option("-o", "--out", "output", default="dist", show_default=True, help="folder of the wheel")
@json_option
def command(artifact: str, wheel: bool, name: str | None, version: str, output: str, as_json: bool) -> None:
    """A Python wheel of a compiled program."""
    from qcompiler.backends.wheel import write_wheel

    manifest = open_manifest(artifact)
    path = write_wheel(Path(artifact), Path(output), name, version)
    package = name or manifest.interface.prefix
    if as_json:
        show_json({"wheel": str(path), "package": package, "version": version, "size": path.stat().st_size})
        return
    say(f"{path}: {size(path.stat().st_size)}")
    say(f"Next: pip install {path}  |  python -c 'import {package}; print({package}.program().inputs)'")
