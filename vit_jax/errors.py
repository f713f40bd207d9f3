"""The one exception that stands for a user's mistake."""


class UserError(Exception):
    """What was got, what was wanted, what to do: shown on one line, without a traceback.

    `command` is the line of a command, where the message speaks of the arguments of a Python function.
    """

    def __init__(self, message: str, *, command: str = "") -> None:
        super().__init__(message)
        self.command = command or message
