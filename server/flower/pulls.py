"""One reply as the ServerApp fetches it, object by object, never more than a reply may hold.

In: a client of the SuperLink. Out: its answers, or Oversized before the object that is too much is
kept.
Guarantees: whatever a site pushed, at most `cap` bytes of one reply are in memory.
Not covered: what a reply means (server/rounds/intake.py).
"""

from __future__ import annotations

import threading
from typing import Any

from server.front import rules
from server.rounds.faults import Oversized

REPLY_CAP_BYTES = rules.REPLY_BYTES + rules.REPLY_EXTRA_BYTES


class BoundedPulls:
    """A client for the calls of one pull; its threads share the count."""

    def __init__(self, client: Any, cap: int = REPLY_CAP_BYTES) -> None:
        self._client = client
        self._left = cap
        self._lock = threading.Lock()
        self.message_ids: list[str] = []

    def PullMessages(self, request: Any) -> Any:
        """The messages that have come; refuses a tree of too many objects."""
        answer = self._client.PullMessages(request)
        for message in answer.messages_list:
            self.message_ids.append(message.metadata.message_id)
        objects = sum(_count(tree) for tree in answer.message_object_trees)
        if objects > rules.REPLY_OBJECTS:
            raise Oversized(f"a reply of {objects} objects, at most {rules.REPLY_OBJECTS} expected")
        return answer

    def PullObject(self, request: Any) -> Any:
        """One object; refuses the one that would make the reply too large."""
        answer = self._client.PullObject(request)
        with self._lock:
            self._left -= len(answer.object_content)
            if self._left < 0:
                raise Oversized("a reply of more bytes than its kind may have")
        return answer

    def __getattr__(self, name: str) -> Any:
        """Any other call as it is."""
        return getattr(self._client, name)


def _count(tree: Any) -> int:
    """The objects of a tree; the SuperLink took no deep one (announcements.py)."""
    return 1 + sum(_count(child) for child in tree.children)
