"""The command `qcompile`; see docs/cli.md."""

from __future__ import annotations


def main() -> None:
    """Entry of the console script."""
    from .app import cli

    cli.main(prog_name="qcompile")
