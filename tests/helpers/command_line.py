"""Running `qcompile` in this process, and what a failure must look like."""

from __future__ import annotations

from collections.abc import Callable

from click.testing import CliRunner, Result

Run = Callable[..., Result]


def invoke(*args: object) -> Result:
    """The command with the given arguments."""
    from qcompiler.cli.app import cli

    return CliRunner().invoke(cli, [str(a) for a in args])


def failed(result: Result, code: int) -> str:
    """The one line on stderr of a command that failed as it should."""
    assert result.exit_code == code, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("Error: ")
    assert "Traceback" not in result.output
    return lines[0]
