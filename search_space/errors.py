"""The one exception that a person is meant to read."""

__all__ = ["UsageError", "first_line"]


class UsageError(ValueError):
    """Bad input: one line that names the field and the valid choices.

    The command line prints the message alone and exits with code 2; nothing has been written by then.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def first_line(error: Exception) -> str:
    """What OmegaConf says of a value, in one line with the full key in front."""
    message = str(error).splitlines()[0]
    if "AnyNode is not a ListConfig" in message:
        message = "Invalid value; expected a list such as [1,2]"
    key = getattr(error, "full_key", None)
    return f"{key}: {message}" if key else message
