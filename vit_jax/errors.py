"""The one exception that stands for a user's mistake, and what others say, on one line."""


class UserError(Exception):
    """What was got, what was wanted, what to do: shown on one line, without a traceback.

    `command` is the line of a command, where the message speaks of the arguments of a Python function.
    """

    def __init__(self, message: str, *, command: str = "") -> None:
        super().__init__(message)
        self.command = command or message


def first_line(error: BaseException) -> str:
    """The first line with text of what an error says; the name of its type where it says nothing."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)
