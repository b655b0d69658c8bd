"""Optional packages of this distribution: a missing one is named with the extra that brings it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kohort.errors import ConfigurationError


def how_to_install(name: str) -> str:
    """Return the hint of an error about a package that the extra `name` brings."""
    return f"pip install './kohort/kohort[{name}]' beside the clone of the repository"


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Turn a module that is not installed into a ConfigurationError that names the extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"{error.name} is not installed",
            hint=how_to_install(name),
        ) from error
