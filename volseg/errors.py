"""What volseg says when it refuses. One line for a person, one reason code for a machine."""


class VolsegError(Exception):
    """A refusal: `code` names the reason (kebab-case, stable), the message names the thing, the number and the way out.

    The command line prints `volseg: <code>: <message>` and leaves with `exit_code`.
    """

    exit_code = 1

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class InputError(VolsegError):
    """The data cannot be used as given (exit code 1)."""


class UsageError(VolsegError):
    """The request itself is wrong (exit code 2)."""

    exit_code = 2
