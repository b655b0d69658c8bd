"""What holds in every process of the tests, before a test imports anything."""

import gc
import logging
import os
import sys
from collections.abc import Iterator

import pytest

# as client and server do for themselves: the tests start children from processes that know gRPC
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    """Take a command's log handlers away: their stream ends with the test that opened it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Look for garbage only among what the tests make, not among modules and collected tests.

    Those live as long as the process. Each full search of the tests' garbage would walk through
    all of them; what a test leaves behind is found as before.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_finish() -> None:
    """Let torch give each of its warnings whenever it is due, not once in a process.

    A warning is an error here; whether a test sees one must not depend on what ran before it.
    """
    if "torch" in sys.modules:
        sys.modules["torch"].set_warn_always(True)


def pytest_unconfigure() -> None:
    """Let the interpreter free everything at its end, which some libraries check."""
    gc.unfreeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take long, so that no worker waits for the other at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
