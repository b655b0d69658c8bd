"""A variable of the environment for a while."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """Set a variable, and take it away again."""
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
