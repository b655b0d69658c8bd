"""What holds in every process of the tests, before a test imports anything."""

import logging
import os
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take long, so that no worker waits for the other at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
