"""Turns faults of options, files and databases into words, for every command."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ValidationError

from common.errors import ConfigurationError, EnvironmentFault


def describe_options(
    error: ValidationError, command: str, default: str = "options"
) -> ConfigurationError:
    """Return one problem for each wrong option; `default` names what has no option of its own."""
    problems = []
    for item in error.errors():
        option = ".".join(map(str, item["loc"])) or default
        problems.append(f"--{option}: {item['msg'].removeprefix('Value error, ')}")
    return ConfigurationError(
        "\n".join(problems), problems=problems, hint=f"kohort-site {command} --help"
    )


@contextmanager
def name_faults() -> Iterator[None]:
    """Turn what no command expected of disk and database into an EnvironmentFault."""
    try:
        yield
    except OSError as error:
        raise EnvironmentFault(
            str(error) or type(error).__name__,
            hint="check the path, its owner and the disk",
        ) from error
    except sqlite3.Error as error:
        raise EnvironmentFault(
            f"a database of the state folder cannot be used: {error}",
            hint="check the disk and the owner of the state folder; change nothing in it by hand",
        ) from error
