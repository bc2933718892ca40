"""What commands print: tables and notes for people, one JSON document for programs, and progress with the time left."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

WIDTH_WITHOUT_TERMINAL = 160


def console(stderr: bool = False) -> Console:
    """The terminal, or whatever stands in its place now."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else WIDTH_WITHOUT_TERMINAL, soft_wrap=not stream.isatty(), highlight=False)


def show_json(data: Any) -> None:
    """One JSON document on stdout; what is not finite becomes null."""
    click.echo(json.dumps(finite(data), indent=1, allow_nan=False))


def finite(data: Any) -> Any:
    """`data` with null for infinities and NaN, which JSON cannot say."""
    if isinstance(data, dict):
        return {k: finite(v) for k, v in data.items()}
    if isinstance(data, list | tuple):
        return [finite(v) for v in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table; columns whose heading begins with > are aligned right."""
    headed = any(columns)
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=SIMPLE_HEAD, show_header=headed, show_edge=False)
    for heading in columns:
        right = heading.startswith(">")
        table.add_column(heading.lstrip(">"), justify="right" if right else "left", overflow="fold", no_wrap=right)
    for row in rows:
        table.add_row(*(cell(c) for c in row))
    console().print(table)


def cell(content: object) -> str:
    """Text of a cell, free of markup."""
    if content is None:
        return "-"
    if isinstance(content, bool):
        return "yes" if content else "no"
    text = f"{content:.4g}" if isinstance(content, float) else f"{content:,}" if isinstance(content, int) else str(content)
    return text.replace("[", r"\[")


def say(text: str) -> None:
    """A line for people, on stdout."""
    click.echo(text)


def warn(text: str) -> None:
    """A line that must not be missed, on stderr."""
    click.echo(f"Warning: {text}", err=True)


def size(count: int) -> str:
    """Bytes for people."""
    return f"{count} B" if count < 1024 else f"{count / 1024:.1f} KB" if count < 1 << 20 else f"{count / (1 << 20):.1f} MB"


@contextmanager
def progress(label: str, total: int | None, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A bar with the time left; yields what is told how much is done. Nothing is shown where `quiet` or not on a terminal."""
    terminal = console(stderr=True)
    with bar(terminal, shown=terminal.is_terminal and not quiet) as progress:
        task = progress.add_task(label, total=total)
        yield lambda done: progress.update(task, completed=done)


@contextmanager
def phases(label: str, total: int | None, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """As `progress`, of work in several parts: yields what is told of (part, how much is done, of how much; 0: unknown)."""
    terminal = console(stderr=True)
    with bar(terminal, shown=terminal.is_terminal and not quiet) as progress:
        task = progress.add_task(label, total=total)
        yield lambda part, done, of: progress.update(task, description=part, completed=done, total=of or None)


def bar(terminal: Console, shown: bool) -> Progress:
    """Spinner, label, bar, count, time left."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=terminal, transient=True, disable=not shown)
