"""The errors a user can meet. Each message says what was expected, what was found, where, and what to do."""

from __future__ import annotations

from collections.abc import Sequence


class QCompilerError(Exception):
    """Base of all errors raised on purpose; the command line prints them in one line."""

    exit_code = 1


class UsageError(QCompilerError):
    """The request itself is wrong: bad option, bad calibration data, unwritable output."""

    exit_code = 2


class ModelError(QCompilerError):
    """The model file is damaged, hostile or malformed."""

    exit_code = 3


class UnsupportedModel(QCompilerError):
    """The model is valid but holds operators, types or shapes that cannot be compiled."""

    exit_code = 3

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(self.problems))


class ProofError(QCompilerError):
    """A compile-time proof (overflow, integer-only, legality of a stage) does not hold."""

    exit_code = 3
