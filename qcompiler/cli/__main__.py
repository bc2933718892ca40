"""`python -m qcompiler.cli`."""

from . import main

main()
