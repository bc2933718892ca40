"""The group of commands: what it falls back to, and how errors end."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from typing import Any

import click

from qcompiler import QCompilerError, __version__

DONE, CHECK_FAILED, WRONG_USE, UNSUPPORTED, BUG, INTERRUPTED = 0, 1, 2, 3, 70, 130

COMMANDS = {
    "compile": "compile",
    "eval": "evaluate",
    "verify": "verify",
    "bench": "bench",
    "compare": "compare",
    "inspect": "inspect",
    "lint": "lint",
    "package": "package",
    "targets": "targets",
}
"""Name of each command -> its module, which is imported when the command is used."""

INTRODUCTION = """Compile trained ONNX networks to integer-only programs.

\b
qcompile MODEL.onnx --calib DATA.npz     compile for this machine
qcompile MODEL.onnx --target arm64       compile for another one
qcompile eval build/MODEL --data ...     accuracy, beside the float network's
qcompile verify build/MODEL              bit-exact? integer-only? whole?
qcompile bench build/MODEL MODEL.onnx    latency beside ONNX Runtime
qcompile compare MODEL.onnx --targets .. targets side by side
qcompile inspect build/MODEL [VALUE]     layers, scales, memory, proofs
qcompile lint MODEL.int8.onnx --profile  will a toolchain take it?
qcompile package build/MODEL --wheel      install it without the compiler
qcompile targets                         what can be compiled for

Without a command, `compile` is meant; `qcompile compile --help` lists its options.
"""


class Commands(click.Group):
    """Imports commands when they are used, takes a first argument that is none for a model, and reports errors in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f".{COMMANDS[cmd_name]}", __package__).command
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in ("--help", "-h", "--version", *COMMANDS):
            if not args[0].startswith("-"):
                import_module(".compile", __package__).check_model(args[0])
            args = ["compile", *args]
        return super().parse_args(ctx, args)

    def main(self, *args: Any, **given: Any) -> Any:
        code = guarded(lambda: super(Commands, self).main(*args, **{**given, "standalone_mode": False}))
        sys.exit(code)


def guarded(run: Callable[[], object]) -> int:
    """The exit code of `run`; errors become one line on stderr, or a traceback where QC_DEBUG is set."""
    try:
        with native_messages_off():
            result = run()
        return result if isinstance(result, int) else DONE
    except (click.Abort, KeyboardInterrupt):
        return fail("interrupted; nothing was replaced", INTERRUPTED)
    except Exception as problem:
        if os.environ.get("QC_DEBUG") and not isinstance(problem, click.ClickException):
            raise
        return fail(*explained(problem))


def explained(problem: Exception) -> tuple[str, int]:
    """What to tell the user of `problem`, and the exit code."""
    if isinstance(problem, click.ClickException):
        return f"{problem.format_message()}{usage_hint(problem)}", WRONG_USE
    if isinstance(problem, QCompilerError) or isinstance(getattr(problem, "exit_code", None), int):
        return str(problem), int(getattr(problem, "exit_code", CHECK_FAILED))
    if isinstance(problem, OSError):
        place = f" ('{problem.filename}')" if problem.filename else ""
        return f"{problem.strerror or problem}{place}; choose another place with -o, or make room", WRONG_USE
    if isinstance(problem, MemoryError):
        return "out of memory; compile with fewer calibration samples per batch, or on a larger machine", WRONG_USE
    return f"internal error: {type(problem).__name__}: {problem}; set QC_DEBUG=1 for the traceback and please report it", BUG


def usage_hint(problem: click.ClickException) -> str:
    """Where to read on, for an error in the command's arguments."""
    context = getattr(problem, "ctx", None)
    return f" Try '{context.command_path} --help'." if context is not None else ""


def fail(message: str, code: int) -> int:
    """Print the one line that says what went wrong."""
    sys.stdout.flush()
    click.echo(f"Error: {' '.join(message.split())}", err=True)
    return code


@contextmanager
def native_messages_off() -> Iterator[None]:
    """Silence warnings of the libraries below us: what matters is said by our own messages."""
    import warnings

    with warnings.catch_warnings():
        if not os.environ.get("QC_DEBUG"):
            warnings.simplefilter("ignore")
        yield


def nearest(name: str, names: Sequence[str]) -> str:
    """A suggestion for a misspelt `name`, or nothing."""
    found = get_close_matches(name, names, 1)
    return f" Did you mean '{found[0]}'?" if found else ""


SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 120}


@click.group("qcompile", cls=Commands, invoke_without_command=True, help=INTRODUCTION, context_settings=SETTINGS)
@click.version_option(__version__, prog_name="qcompile")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Show the introduction where nothing was asked."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
