"""Optional packages of this distribution: a missing one is named with the extra that brings it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kohort.errors import ConfigurationError


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Turn a module that is not installed into a ConfigurationError that names the extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"{error.name} is not installed",
            hint=f"install kohort with its extra [{name}], as in: pip install './kohort[{name}]'",
        ) from error
