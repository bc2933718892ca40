"""What can go wrong when a program is loaded or run; `exit_code` is what the command line returns."""

from __future__ import annotations


class RuntimeFailure(Exception):
    """Base of the runtime's own errors."""

    exit_code = 1


class ArtifactError(RuntimeFailure):
    """The artifact is missing, damaged or of another format."""

    exit_code = 2


class MachineError(RuntimeFailure):
    """The machine cannot run the program: other architecture, missing CPU feature, code may not be mapped."""

    exit_code = 2


class InputError(RuntimeFailure):
    """The arrays handed to a program do not fit its inputs."""

    exit_code = 2


class OutOfRange(InputError):
    """The program refused `inputs[index]`: an element is outside of its interval."""

    def __init__(self, entry: str, index: int) -> None:
        super().__init__(f"{entry} refused inputs[{index}]: an element is out of range")
        self.index = index
