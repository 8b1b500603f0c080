"""The one exception that a person is meant to read."""

__all__ = ["UsageError"]


class UsageError(ValueError):
    """Bad input: one line that names the field and the valid choices.

    The command line prints the message alone and exits with code 2; nothing has been written by then.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
