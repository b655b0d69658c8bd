"""Kills the daemon at a durable point: whatever it wrote before is on disk, and nothing after.

In: a countdown, which runs while the site is asked something. Out: `Killed`, which nothing catches.
Not covered: a power cut that loses what was synced.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from client.state import ledger_file
from client.state.group_store import GroupStore
from common.storage.journal import Journal


class Killed(BaseException):
    """Stands for `kill -9`: nothing catches it, and the next start sees only what is on disk."""


class Faults:
    """Counts durable points, and kills at one of them once `arm` was called."""

    def __init__(self) -> None:
        self.planned = 0
        self._left = 0
        self.kills = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Kill inside this block, at the planned durable point, once."""
        self._left = self.planned
        self.planned = 0
        try:
            yield
        finally:
            self._left = 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let the daemon live inside this block."""
        left = self._left
        self._left = 0
        try:
            yield
        finally:
            self._left = left

    def pass_point(self) -> None:
        """Note a durable point; raises Killed at the chosen one."""
        if self._left:
            self._left -= 1
            if not self._left:
                self.kills += 1
                raise Killed

    def install(self, stack: ExitStack) -> None:
        """Wrap every function that makes something durable, until `stack` closes."""
        stack.enter_context(patch("os.replace", self._around(os.replace)))
        append = self._around(Journal.append)
        stack.enter_context(patch.object(Journal, "append", append))
        for owner in (ledger_file, "client.state.ledger"):
            self._wrap_transaction(stack, owner)
        freeze = self._in_transaction(GroupStore._transaction)
        stack.enter_context(patch.object(GroupStore, "_transaction", freeze))

    def _wrap_transaction(self, stack: ExitStack, owner: Any) -> None:
        """Wrap a module's `transaction` of the ledger."""
        wrapped = self._in_transaction(_TRANSACTION)
        if isinstance(owner, str):
            stack.enter_context(patch(f"{owner}.transaction", wrapped))
        else:
            stack.enter_context(patch.object(owner, "transaction", wrapped))

    def _around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function with a durable point before and after it."""

        def wrapped(*arguments: Any, **named: Any) -> Any:
            self.pass_point()
            result = function(*arguments, **named)
            self.pass_point()
            return result

        return wrapped

    def _in_transaction(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A transaction with a durable point before and after its commit."""

        @contextmanager
        def wrapped(*arguments: Any) -> Iterator[Any]:
            with function(*arguments) as value:
                yield value
                self.pass_point()
            self.pass_point()

        return wrapped


_TRANSACTION = ledger_file.transaction
