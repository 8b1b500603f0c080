"""Settings in a YAML file, checked against the dataclass that says what there is."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from search_space.errors import UsageError

__all__ = ["read_settings"]

T = TypeVar("T")


def read_settings(schema: type[T] | T, path: Path, overrides: Sequence[str] = (), example: str = "key=value") -> T:
    """What the file says, with `key=value` overrides; what neither says is as in `schema`, a dataclass or one of it.

    overrides: keys are dotted and may be places in a list, as in stages.0.steps=10. example: of one, for who errs.
    Raises `UsageError` with the field and the choices.
    """
    if wrong := next((override for override in overrides if "=" not in override), None):
        raise UsageError(f"override: {wrong!r} is not key=value, such as {example}")
    try:
        told = OmegaConf.load(path)
        for key, _, value in (override.partition("=") for override in overrides):
            OmegaConf.update(told, key, OmegaConf.from_dotlist([f"value={value}"])["value"])
        settings: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), told))
    except UsageError:  # of a dataclass that checks itself
        raise
    except OmegaConfBaseException as error:
        raise UsageError(_first_line(error)) from error
    except Exception as error:  # YAML's own parser, or the file system
        raise UsageError(f"{path}: not readable as YAML: {error}") from error
    return settings


def _first_line(error: OmegaConfBaseException) -> str:
    """With the full key in front."""
    message = str(error).splitlines()[0]
    if "AnyNode is not a ListConfig" in message:
        message = "Invalid value; expected a list such as [1,2]"
    return f"{error.full_key}: {message}" if error.full_key else message
