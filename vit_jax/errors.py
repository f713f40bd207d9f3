"""The one exception that stands for a user's mistake."""


class UserError(Exception):
    """What was got, what was wanted, what to do: shown on one line, without a traceback."""
