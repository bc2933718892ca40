"""Peaks of the forms with sums of 16 bits on this CPU: `python -m benchmarks.chains`.

A chain adds up the products of several groups of four in 16 bits before they are widened (`backends/llvm/chains.py`); its peak is what a loop of
such chains reaches in registers (`backends/llvm/peak.py`).
"""

from __future__ import annotations

import click

from qcompiler.backends.llvm.peak import Chain, chain_gops
from qcompiler.backends.llvm.target import find_target
from qcompiler.runtime.cpu import cpu_name

LINKS = (1, 2, 4, 8)


@click.command()
@click.option("--target", default="x86-64-avx2", show_default=True, help="A target with sums of 16 bits that runs here.")
def main(target: str) -> None:
    """Print GOP/s of each chain."""
    row = find_target(target)
    click.echo(f"{cpu_name()}, {row.name}, GOP/s of one core\n\n| groups in a chain | with signs | x + 128 |\n|---|---|---|")
    for links in LINKS:
        figures = " | ".join(f"{chain_gops(row, Chain(links, signed)):.0f}" for signed in (True, False))
        click.echo(f"| {links} | {figures} |")


if __name__ == "__main__":
    main()
